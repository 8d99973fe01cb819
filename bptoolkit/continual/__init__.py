"""Sequences of tasks and what they do to a net: streams, strategies against forgetting, the runner, the metrics."""

from bptoolkit.continual.activity import Plasticity, effective_rank, plasticity, weight_norm
from bptoolkit.continual.boundaries import blurry, online
from bptoolkit.continual.calibration import brier_score, calibration_error
from bptoolkit.continual.choose import Choice, choose, held_out
from bptoolkit.continual.controls import cumulative, joint, naive, random_features, separate, shallow
from bptoolkit.continual.convert import Convention, convert_strength
from bptoolkit.continual.cost import memory_bytes
from bptoolkit.continual.diagnose import Diagnosis, Findings, diagnose
from bptoolkit.continual.distil import lwf
from bptoolkit.continual.distilled_replay import der, der_plus_plus
from bptoolkit.continual.experiment import Cost, Experiment, Hyper, Result
from bptoolkit.continual.fisher import fisher
from bptoolkit.continual.functional import fromp
from bptoolkit.continual.gdumb import gdumb
from bptoolkit.continual.gem import agem, gem
from bptoolkit.continual.generative_classifier import generative_classifier
from bptoolkit.continual.generative_replay import generative_replay
from bptoolkit.continual.hat import hat
from bptoolkit.continual.icarl import icarl
from bptoolkit.continual.isolate import packnet, xdg
from bptoolkit.continual.lanes import Grid
from bptoolkit.continual.layout import Layout, choose_layout
from bptoolkit.continual.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    intransigence,
    learning_accuracy,
    minimum_accuracy,
    stability_gap,
    worst_case_accuracy,
)
from bptoolkit.continual.nesting import around
from bptoolkit.continual.project import ogd
from bptoolkit.continual.regularise import ewc, l2_anchor, mas, online_ewc, si
from bptoolkit.continual.rehearse import replay, reservoir_replay
from bptoolkit.continual.renewal import continual_backprop, l2_init, redo, shrink_and_perturb
from bptoolkit.continual.run import run, run_grid
from bptoolkit.continual.rwalk import rwalk
from bptoolkit.continual.statistics import Comparison, compare, permutation_test
from bptoolkit.continual.streams import Indices, Stream, View, label_shuffled, permuted, rotated, split
from bptoolkit.continual.walk import Moment, RunState

__all__ = [
    "Choice",
    "Comparison",
    "Convention",
    "Cost",
    "Diagnosis",
    "Experiment",
    "Findings",
    "Grid",
    "Hyper",
    "Indices",
    "Layout",
    "Moment",
    "Plasticity",
    "Result",
    "RunState",
    "Stream",
    "View",
    "agem",
    "around",
    "average_accuracy",
    "backward_transfer",
    "blurry",
    "brier_score",
    "calibration_error",
    "choose",
    "choose_layout",
    "compare",
    "continual_backprop",
    "convert_strength",
    "cumulative",
    "der",
    "der_plus_plus",
    "diagnose",
    "effective_rank",
    "ewc",
    "fisher",
    "forgetting",
    "forward_transfer",
    "fromp",
    "gdumb",
    "gem",
    "generative_classifier",
    "generative_replay",
    "hat",
    "held_out",
    "icarl",
    "intransigence",
    "joint",
    "l2_anchor",
    "l2_init",
    "label_shuffled",
    "learning_accuracy",
    "lwf",
    "mas",
    "memory_bytes",
    "minimum_accuracy",
    "naive",
    "ogd",
    "online",
    "online_ewc",
    "packnet",
    "permutation_test",
    "permuted",
    "plasticity",
    "random_features",
    "redo",
    "replay",
    "reservoir_replay",
    "rotated",
    "run",
    "run_grid",
    "rwalk",
    "separate",
    "shallow",
    "shrink_and_perturb",
    "si",
    "split",
    "stability_gap",
    "weight_norm",
    "worst_case_accuracy",
    "xdg",
]
