"""Losses of ONE example, L(logits, target, active, temperature), their hand-written errors ∂L/∂logits, and their mean.

Logits, target and active outputs are of one shape (k,): others are refused, never broadcast; batches go by `jax.vmap`.
Outputs that are not active do not exist for a loss: probability zero, gradient zero, whatever their logits hold.

A row of temperature ∞ holds logits to be matched: whatever the loss, its L is ½ Σ_i (t_i − o_i)².  (For cross-entropy
it is the limit of k T² L as T → ∞, where logits and targets have mean zero: Hinton, Vinyals & Dean, 2015, section 2.1.)
"""

import inspect
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bptoolkit.counts import fails
from bptoolkit.types import Batch

__all__ = [
    "Loss",
    "binary_cross_entropy",
    "correct",
    "cross_entropy",
    "mean_loss",
    "output_error",
    "probabilities",
    "squared_error",
]

Loss: TypeAlias = Callable[..., Float[Array, ""]]
"""The loss of one row: `loss(logits, target, active, temperature)`; `cross_entropy` is one."""
Logits: TypeAlias = Float[Array, "k"]
Active: TypeAlias = Bool[Array, "k"] | None


def check_loss(loss: Loss) -> None:
    """Raise ValueError for something else than a loss, such as its name or a function of other arguments."""
    try:
        inspect.signature(loss).bind(*["logits", "target", "active", "temperature"])
    except (TypeError, ValueError) as error:
        named = getattr(loss, "__name__", type(loss).__name__)
        raise ValueError(
            f"loss must be a function of (logits, target, active, temperature), as cross_entropy is one, got {named}."
        ) from error


def cross_entropy(
    logits: Logits, target: Float[Array, "k"], active: Active = None, temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, ""]:
    """L = −Σ_i t_i log p_i over the active outputs, p = softmax(logits / T) over them.

    Target mass on an output that is not active counts for nothing; with none active, L = 0.  No factor T² is applied:
    the gradient is of order 1/T, and for soft targets of the same T of order 1/T².

    Args:
        logits: (k,).
        target: (k,), one-hot or soft.
        active: (k,) the outputs in play; all if left out.
        temperature: T > 0, a scalar that may be traced; ∞ matches logits.
    """
    logits, target, active = _one_row(logits, target, active, temperature)
    log_p = _log_probabilities(logits, active, _finite(temperature))
    loss = -jnp.sum(jnp.where(active, target.astype(logits.dtype), 0) * jnp.where(active, log_p, 0))
    return jnp.where(jnp.isinf(temperature), squared_error(logits, target, active), loss)


def binary_cross_entropy(
    logits: Logits, target: Float[Array, "k"], active: Active = None, temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, ""]:
    """L = −Σ_i t_i log p_i + (1 − t_i) log(1 − p_i) over the active outputs, each its own p_i = σ(o_i / T).

    Args:
        logits: (k,).
        target: (k,), each in [0, 1].
        active: (k,) the outputs in play; all if left out.
        temperature: T > 0, a scalar that may be traced; ∞ matches logits.
    """
    logits, target, active = _one_row(logits, target, active, temperature)
    z = jnp.where(active, logits, 0) / jnp.asarray(_finite(temperature), logits.dtype)
    loss = jnp.sum(jnp.where(active, jax.nn.softplus(z), 0) - jnp.where(active, target.astype(z.dtype), 0) * z)
    return jnp.where(jnp.isinf(temperature), squared_error(logits, target, active), loss)


def squared_error(
    outputs: Logits, target: Float[Array, "k"], active: Active = None, temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, ""]:
    """L = ½ Σ_i (t_i − o_i)² over the active outputs; the temperature plays no part.

    Args:
        outputs, target: (k,).
        active: (k,) the outputs in play; all if left out.
    """
    del temperature
    return jnp.sum(jnp.square(_difference(outputs, target, active))) / 2


def probabilities(
    logits: Logits, active: Active = None, temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, "k"]:
    """softmax(logits / T) over the active outputs, exactly zero elsewhere."""
    logits, _, active = _one_row(logits, None, active, temperature)
    return jnp.where(active, jnp.exp(_log_probabilities(logits, active, temperature)), 0)


def correct(logits: Logits, target: Float[Array, "k"], active: Active = None) -> Bool[Array, ""]:
    """Whether the largest active output is the target's; False where it is NaN or no output is active."""
    logits, target, active = _one_row(logits, target, active)
    seen = jnp.where(active, logits, -jnp.inf)
    hit = jnp.argmax(seen) == jnp.argmax(target)
    return hit & jnp.any(active) & ~jnp.isnan(jnp.max(seen))  # argmax takes a NaN for the largest


def mean_loss(loss: Loss, logits: Float[Array, "b k"], batch: Batch) -> Float[Array, ""]:
    """Σ_r w_r L_r / Σ_r w_r over the rows; 0 where no row has weight.

    A row of weight 0 adds exactly nothing to value and gradient, also where its logits, target or temperature are not
    finite.  (Its input must be finite all the same: the gradient of a model at a NaN is NaN times zero.)  A weight that
    is negative or NaN counts as 0.
    """
    counts = batch.weight > 0
    blank = lambda rows, fill: jnp.where(counts.reshape(-1, *[1] * (rows.ndim - 1)), rows, fill)
    losses = jax.vmap(loss)(blank(logits, 0), blank(batch.target, 0), batch.active, blank(batch.temperature, 1))
    weight = jnp.where(counts, batch.weight, 0).astype(losses.dtype)
    total = jnp.sum(weight)
    return jnp.sum(jnp.where(counts, weight * losses, 0)) / jnp.where(total > 0, total, 1)


def output_error(loss: Loss) -> Callable[..., Logits]:
    """The function (logits, target, active, temperature) -> ∂L/∂logits: by hand for our losses, else by `jax.grad`."""
    return BY_HAND.get(loss, jax.grad(loss))


def _cross_entropy_error(logits: Logits, target, active: Active = None, temperature=1.0) -> Logits:
    """(p_i Σ_j t_j − t_i) / T: over active outputs, zero elsewhere."""
    logits, target, active = _one_row(logits, target, active, temperature)
    t = jnp.where(active, target.astype(logits.dtype), 0)
    p = probabilities(logits, active, _finite(temperature))
    error = (p * jnp.sum(t) - t) / jnp.asarray(_finite(temperature), logits.dtype)
    return jnp.where(jnp.isinf(temperature), -_difference(logits, target, active), error)


def _binary_cross_entropy_error(logits: Logits, target, active: Active = None, temperature=1.0) -> Logits:
    """(σ(o_i / T) − t_i) / T: over active outputs, zero elsewhere."""
    logits, target, active = _one_row(logits, target, active, temperature)
    t = jnp.asarray(_finite(temperature), logits.dtype)
    error = jnp.where(active, (jax.nn.sigmoid(jnp.where(active, logits, 0) / t) - target.astype(logits.dtype)) / t, 0)
    return jnp.where(jnp.isinf(temperature), -_difference(logits, target, active), error)


def _squared_error_error(outputs: Logits, target, active: Active = None, temperature=1.0) -> Logits:
    """o_i − t_i over active outputs, zero elsewhere."""
    del temperature
    return -_difference(outputs, target, active)


BY_HAND: dict[Loss, Callable[..., Logits]] = {
    binary_cross_entropy: _binary_cross_entropy_error,
    cross_entropy: _cross_entropy_error,
    squared_error: _squared_error_error,
}


def _difference(outputs: Logits, target: Float[Array, "k"], active: Active) -> Logits:
    outputs, target, active = _one_row(outputs, target, active)
    masked = lambda values: jnp.where(active, values.astype(outputs.dtype), 0)  # before the difference: no NaN passes
    return masked(target) - masked(outputs)


def _finite(temperature):
    """The temperature; 1 where it is infinite, so that what is not used is no NaN."""
    return jnp.where(jnp.isinf(temperature), 1, temperature)


def _log_probabilities(logits: Logits, active: Bool[Array, "k"], temperature) -> Logits:
    """log softmax over the active outputs; finite, but without meaning, on the others."""
    z = jnp.where(active, logits, 0) / jnp.asarray(temperature, logits.dtype)
    largest = jax.lax.stop_gradient(jnp.max(jnp.where(active, z, -jnp.inf), initial=jnp.finfo(z.dtype).min))
    shifted = jnp.where(active, z - largest, 0)
    total = jnp.sum(jnp.where(active, jnp.exp(shifted), 0))
    return shifted - jnp.log(jnp.where(jnp.any(active), total, 1))  # a row with none active has no logarithm


def _one_row(
    logits, target, active: Active, temperature: Float[Array, ""] | float = 1.0
) -> tuple[Logits, Array, Bool[Array, "k"]]:
    """Logits, target and active outputs as arrays of one axis, refused where broadcasting would make sense of others.

    Looks at shapes and at a written temperature alone: nothing is left of it in a compiled program.
    """
    logits = jnp.asarray(logits)
    logits = logits if jnp.issubdtype(logits.dtype, jnp.inexact) else logits.astype(jnp.result_type(float))
    target = logits if target is None else jnp.asarray(target)
    active = jnp.ones(logits.shape, bool) if active is None else jnp.asarray(active)
    if logits.ndim != 1 or not logits.shape == target.shape == active.shape:
        raise ValueError(
            "A loss needs logits, target and active outputs of ONE example, each of shape (k,), got "
            f"{logits.shape}, {target.shape} and {active.shape}.\n"
            "Write jax.nn.one_hot(number, k) for a class number, and jax.vmap(loss) for rows."
        )
    if np.shape(temperature) != () or fails(lambda t: t > 0, temperature):
        raise ValueError(
            f"temperature must be one positive number, got {temperature}. Take 1 as a rule, ∞ to match logits."
        )
    return logits, target, active
