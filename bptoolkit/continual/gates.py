"""Hidden units and the weights around them: h ← a ⊙ h is the same net with the weights that leave the units times a.

So a gate needs no change of the model, and no rule needs to know of it: the gradient by the weights of a gated net,
times the gates again, is the gradient by the weights themselves.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit.types import Model, Params

__all__ = ["Gates", "entering", "hidden_units", "leaving", "scale_units"]

Gates: TypeAlias = tuple[Float[Array, "units"], ...]  # one array a hidden layer; for a cell, one


def hidden_units(model: Model, params: Params, name: str = "A gate") -> tuple[int, ...]:
    """The number of units of each hidden layer; channels, for a convolution.

    Raises:
        ValueError: a model that does not show its units.
    """
    if model.layers is not None:
        return tuple(p["b"].shape[-1] for p in params[:-1])
    if model.cell is not None and model.cell.gates is not None:
        return (model.cell.state.shape[-1],)
    raise ValueError(
        f"{name} needs a model that shows its hidden units, got one with neither layers nor a cell with gates.\n"
        "Build it with models.mlp, models.convnet, or models.equilibrium of a rate_cell or hopfield_cell."
    )


def scale_units(model: Model, params: Params, source: Gates, target: Gates) -> Params:
    """Every weight times the gate `source` of the unit it leaves and the gate `target` of the unit it enters.

    Inputs and outputs have no gates; a bias enters its unit.
    """
    if model.layers is None:
        assert model.cell is not None
        assert model.cell.gates is not None
        return model.cell.gates(params, source[0], target[0])
    one = jnp.ones((), params[0]["b"].dtype)
    pairs = zip((one, *source), (*target, one), params, strict=True)
    return tuple({"w": p["w"] * _rows(s, p["w"]) * t, "b": p["b"] * t} for s, t, p in pairs)


def leaving(model: Model, params: Params, gates: Gates) -> Params:
    """The gate of the unit that each weight leaves, a tree like params; 1 where it leaves an input or is a bias."""
    return scale_units(model, jax.tree.map(jnp.ones_like, params), gates, jax.tree.map(jnp.ones_like, gates))


def entering(model: Model, params: Params, gates: Gates) -> Params:
    """The gate of the unit that each weight enters, a tree like params; 1 where it enters an output."""
    return scale_units(model, jax.tree.map(jnp.ones_like, params), jax.tree.map(jnp.ones_like, gates), gates)


def _rows(gate: Array, w: Array) -> Array:
    """A gate for the next-to-last axis of w; units of an image repeat in each of its places."""
    if gate.ndim == 0:
        return gate
    return jnp.tile(gate, w.shape[-2] // gate.shape[0])[:, None]
