"""Networks as pairs of pure functions of one example: feed-forward, recurrent, or brought in from Flax."""

from bptoolkit.models import activations
from bptoolkit.models.activations import Activation
from bptoolkit.models.adapters import cell_from_linen, cell_from_nnx, from_linen, from_nnx
from bptoolkit.models.cells import hopfield_cell, rate_cell
from bptoolkit.models.conv_cell import conv_cell
from bptoolkit.models.convnet import convnet
from bptoolkit.models.equilibrium import equilibrium, settling
from bptoolkit.models.gated import gated_cell
from bptoolkit.models.graph import graph_cell
from bptoolkit.models.matching import count_parameters, matched_units
from bptoolkit.models.mlp import mlp, uniform_fan_in
from bptoolkit.models.monotone import monotone_cell

__all__ = [
    "Activation",
    "activations",
    "cell_from_linen",
    "cell_from_nnx",
    "conv_cell",
    "convnet",
    "count_parameters",
    "equilibrium",
    "from_linen",
    "from_nnx",
    "gated_cell",
    "graph_cell",
    "hopfield_cell",
    "matched_units",
    "mlp",
    "monotone_cell",
    "rate_cell",
    "settling",
    "uniform_fan_in",
]
