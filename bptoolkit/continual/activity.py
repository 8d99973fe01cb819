"""What hidden units do: their activity, and three figures of how much of a net is still alive.

For a net that settles, everything is of the settled state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit.continual.gates import Gates, hidden_units
from bptoolkit.types import Batch, Model, Params

__all__ = ["Plasticity", "effective_rank", "mean_activity", "plasticity", "weight_norm"]

THRESHOLD = 0.025  # τ of a dormant unit


class Plasticity(NamedTuple):
    """How much of a net is alive; of several nets, or at several times, with leading axes."""

    dormant: Float[Array, ""]  # share of hidden units
    effective_rank: Float[Array, ""]  # of the last hidden layer's activities
    weight_norm: Float[Array, ""]


def plasticity(model: Model, params: Params, x: Float[Array, "b *d"], threshold: float = THRESHOLD) -> Plasticity:
    """Dormant units, effective rank and weight norm of one net, on some inputs.

    A unit is dormant where E|h_i| / mean_k E|h_k| ≤ threshold, over the units k of its layer; a convolution's channel
    counts as one unit.  Over seeds: `jax.vmap(lambda p: plasticity(model, p, x))(result.params)`; after every task of a
    run: `Experiment.probe`.

    Args:
        model, params: of one net.
        x: inputs, a few hundred are enough; the rank cannot exceed their number.
        threshold: τ, at least 0.

    Raises:
        ValueError: a negative threshold; no rows; a model that has no hidden units, or does not show them.

    Reference: Sokar et al. (2023), ICML, definition 3.1; Roy & Vetterli (2007), EUSIPCO, on the rank.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}.")
    if not hidden_units(model, params, "Plasticity"):
        raise ValueError("Plasticity needs a model with hidden units, got one with none.")
    if len(x) == 0:
        raise ValueError("x must have at least one row, got none. A few hundred are enough.")
    dormant, last = dormant_and_last(model, params, x, threshold)
    return Plasticity(dormant, effective_rank(last), weight_norm(params))


def dormant_and_last(
    model: Model, params: Params, x: Float[Array, "b *d"], threshold: float = THRESHOLD
) -> tuple[Float[Array, ""], Float[Array, "b units"]]:
    """The share of dormant units, NaN where activities are not finite, and what the last hidden layer sends."""
    hidden = jax.vmap(lambda x: hidden_activities(model, params, x))(x)
    size = [jnp.mean(jnp.abs(h), axis=tuple(range(h.ndim - 1))) for h in hidden]
    dormant = jnp.concatenate([a <= threshold * jnp.mean(a) for a in size])
    last = hidden[-1].reshape(len(x), -1)
    known = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in size]))
    return jnp.where(known, jnp.mean(dormant, dtype=last.dtype), jnp.nan), last


def effective_rank(features: Float[Array, "b units"]) -> Float[Array, ""]:
    """exp(−Σ p_i log p_i), p_i = σ_i / Σ σ: between 1 and the rank; 0 where all features are 0, NaN where any is not
    finite.

    Reference: Roy & Vetterli (2007), EUSIPCO.
    """
    sigma = jnp.linalg.svd(features, compute_uv=False)
    total = jnp.sum(sigma)
    p = sigma / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
    rank = jnp.where(total > 0, jnp.exp(entropy), 0)
    return jnp.where(jnp.all(jnp.isfinite(features)), rank, jnp.nan)


def weight_norm(params: Params) -> Float[Array, ""]:
    """‖θ‖, over all weights and biases."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)))


def mean_activity(model: Model, params: Params, batch: Batch) -> Gates:
    """E|h_i| of every hidden unit over the rows that count; of a channel, also over its places."""
    hidden = jax.vmap(lambda x: hidden_activities(model, params, x))(batch.x)
    weight = batch.weight / jnp.maximum(jnp.sum(batch.weight), jnp.finfo(batch.weight.dtype).tiny)
    places = lambda h: jnp.mean(jnp.abs(h), axis=tuple(range(1, h.ndim - 1)))
    return tuple(jnp.tensordot(weight.astype(h.dtype), places(h), 1) for h in hidden)


def hidden_activities(model: Model, params: Params, x: Float[Array, "*d"]) -> tuple[Float[Array, "..."], ...]:
    """h of every hidden layer for one input; for a cell, its settled state.

    Raises:
        ValueError: a model that does not show its hidden units.
    """
    hidden_units(model, params, "Plasticity")
    if model.layers is None:
        assert model.cell is not None
        assert model.cell.settle is not None
        return (model.cell.settle(params, x).value,)
    found, h = [], x
    for layer, p in zip(model.layers[:-1], params[:-1], strict=True):
        h = layer.activation(layer.linear(p, h))
        found.append(h)
    return tuple(found)
