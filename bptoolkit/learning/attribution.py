"""The error of every unit: δ = ∂L/∂a, a the unit's total input, by a hand-written backward sweep.

    feed-forward   δ_L = g′(a_L) ⊙ ∂L/∂h_L,    δ_l = g′(a_l) ⊙ W_{l+1} δ_{l+1}    (w[i, j] leads from i to j)
    recurrent      λ = Jᵀλ + ∂L/∂z*,           δ = (∂f/∂d)ᵀ λ, for a rate cell g′(d + W z*) ⊙ λ

The gradient of a weight is then the activity that enters it times the error of the unit it leads to.
References: Rumelhart, Hinton & Williams (1986), Nature 323; Almeida (1987), IEEE ICNN; Pineda (1987), PRL 59.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bptoolkit import trees
from bptoolkit.fixed_point import Adjoint, Solution, almeida_pineda
from bptoolkit.fixed_point.adjoints import check_adjoint
from bptoolkit.learning.losses import Loss, check_loss, cross_entropy, output_error
from bptoolkit.models.activations import slope
from bptoolkit.types import Cell, Layer, Model, Params, PyTree

__all__ = ["Attribution", "attribution", "through_layers", "weight_gradient"]


_NO_UNITS = (
    "attribution needs a model with layers or a settled cell, got one with neither.\n"
    "Build it with models.mlp, models.convnet or models.equilibrium; a Flax module shows no units, "
    "but cell_from_nnx and cell_from_linen make it a cell."
)


class Attribution(NamedTuple):
    """What one example did in a network, and what each unit's input would change in its loss."""

    loss: Float[Array, ""]
    logits: Float[Array, "k"]
    activations: tuple[PyTree, ...]  # h_0 = x, then one a layer; for a settled model (x, z*, logits)
    errors: tuple[PyTree, ...]  # ∂L/∂a of the units in activations[1], activations[2], …
    forward: Solution | None = None  # how z* was settled
    backward: Solution | None = None  # how λ was settled; λ is its value


def attribution(
    model: Model,
    params: Params,
    x: Float[Array, "*d"],
    target: Float[Array, "k"],
    active: Bool[Array, "k"] | None = None,
    loss: Loss = cross_entropy,
    *,
    temperature: Float[Array, ""] | float = 1.0,
    adjoint: Adjoint | None = None,
) -> Attribution:
    """The error of every unit of a layered or a settled model, for ONE example.

    In a settled model λ_i (the z_i of Almeida and Pineda) is ∂L/∂I_i for a current I added outside the nonlinearity,
    z = f(z) + I, and errors[0] is ∂L/∂d for the current d = `cell.drive(params, x)` inside it.  A cell without a
    drive has no inside: there errors[0] is λ.

    Args:
        model: one with `layers`, or the work of `equilibrium`.
        params, x: its parameters, one input.
        target, active, temperature: (k,), (k,) and () as the loss takes them; all outputs active if left out.
        loss: its output error is by hand for `cross_entropy` and `squared_error`, else by `jax.grad`.
        adjoint: how λ is settled; `almeida_pineda()` if left out.  Check `backward.status`.

    Raises:
        ValueError: something else than a model, a loss or an adjoint; a model with neither layers nor a cell that
            settles; a target or active outputs of another shape than the logits.
    """
    if not isinstance(model, Model):
        raise ValueError(f"attribution needs a Model, got {type(model).__name__}. Make one of a cell by equilibrium.")
    check_loss(loss)
    if adjoint is not None:
        check_adjoint("adjoint", adjoint)
    asked = (target, active, temperature)
    objective = lambda logits: (loss(logits, *asked), output_error(loss)(logits, *asked))
    if model.layers is not None:
        return through_layers(model.layers, params, x, objective)
    if model.cell is not None and model.cell.settle is not None:
        forward = model.cell.settle(params, x)
        return _through_cell(model.cell, params, x, forward, objective, adjoint or almeida_pineda())
    raise ValueError(_NO_UNITS)


def weight_gradient(model: Model, params: Params, found: Attribution) -> Params:
    """∂L/∂params from activities and errors: outer products h ⊗ δ for dense layers, (∂f/∂params)ᵀλ for a cell."""
    if model.layers is not None:
        below = found.activations[:-1]
        return tuple(map(_layer_gradient, model.layers, params, below, found.errors))
    if model.cell is not None and found.backward is not None:
        return _cell_gradient(model.cell, params, found, found.backward.value)
    raise ValueError(_NO_UNITS)


def through_layers(layers: tuple[Layer, ...], params: Params, x, objective) -> Attribution:
    """Forward, keeping every a_l and h_l; backward, one layer at a time, from objective(logits) = (L, ∂L/∂logits)."""
    h, inputs = [x], []
    for layer, p in zip(layers, params, strict=True):
        inputs.append(layer.linear(p, h[-1]))
        h.append(layer.activation(inputs[-1]))

    value, output = objective(h[-1])
    errors = [slope(layers[-1].activation, inputs[-1]) * output]
    for upper, p, layer, a, below in reversed(list(zip(layers[1:], params[1:], layers, inputs, h[1:], strict=False))):
        errors.append(slope(layer.activation, a) * _to_layer_below(upper, p, below, errors[-1]))
    return Attribution(value, h[-1], tuple(h), tuple(reversed(errors)))


def _to_layer_below(layer: Layer, params: Params, h: Float[Array, "..."], error: Float[Array, "..."]):
    """∂L/∂h_{l−1} = Σ_j w_ij δ_j; for a layer that is not dense, the transpose of its linear part."""
    if layer.dense:
        return (params["w"] @ error).reshape(h.shape)
    return jax.linear_transpose(lambda h: layer.linear(params, h), h)(error)[0]


def _layer_gradient(layer: Layer, params: Params, h: Float[Array, "..."], error: Float[Array, "..."]) -> Params:
    if layer.dense:
        return {"w": jnp.outer(h, error), "b": error}
    return jax.vjp(lambda p: layer.linear(p, h), params)[1](error)[0]


def _cell_gradient(cell: Cell, params: Params, found: Attribution, lam: PyTree) -> Params:
    """(∂f/∂params)ᵀ λ, and what the readout adds."""
    x, z, _ = found.activations
    through_step = jax.vjp(lambda p: cell.step(p, x, z), params)[1](lam)[0]
    through_readout = jax.vjp(lambda p: cell.readout(p, z), params)[1](found.errors[-1])[0]
    return trees.add(through_step, through_readout)


def _through_cell(cell: Cell, params: Params, x, forward: Solution, objective, adjoint: Adjoint) -> Attribution:
    """Linearise one step and the readout at the settled state z*, settle λ."""
    logits, read_back = jax.vjp(lambda z: cell.readout(params, z), forward.value)
    value, output = objective(logits)
    transposed = jax.vjp(lambda z: cell.step(params, x, z), forward.value)[1]
    backward = adjoint(lambda lam: transposed(lam)[0], read_back(output)[0])
    units = _inside(cell, params, x, forward.value, backward.value)
    return Attribution(value, logits, (x, forward.value, logits), (units, output), forward, backward)


def _inside(cell: Cell, params: Params, x, z: PyTree, lam: PyTree) -> PyTree:
    """(∂f/∂d)ᵀ λ for a cell with a drive d, else λ."""
    drive, respond = cell.drive, cell.respond
    if drive is None or respond is None:
        return lam
    return jax.vjp(lambda d: respond(params, d, z), drive(params, x))[1](lam)[0]
