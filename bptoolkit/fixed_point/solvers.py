"""Relaxation methods for z = f(z): each turns the residual r = z − f(z) into the next update of z.

A solver is an optax transformation, so optax's own optimisers are solvers too: `optax.sgd(1.0)` is `picard()`, and
`optax.sgd(0.5, momentum=0.3)` the heavy ball.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Inexact, Int

from bptoolkit.types import PyTree

__all__ = ["Solver", "anderson", "damped", "picard", "relaxation"]

Solver = optax.GradientTransformationExtraArgs


def picard() -> Solver:
    """Replace z by f(z).  Contracts only if the spectral radius of ∂f/∂z is below one at the fixed point."""
    return relaxation(1.0)


def damped(damping: Float[Array, ""] | float) -> Solver:
    """z ← damping · z + (1 − damping) · f(z).  `damped(0)` is `picard()`.

    Args:
        damping: share of the old state that is kept, in [0, 1); may be traced.
    """
    if isinstance(damping, int | float) and not 0 <= damping < 1:
        raise ValueError(f"damping must be in [0, 1), got {damping}. Take 0 for plain iteration.")
    return relaxation(1.0 - damping)


def relaxation(dt: Float[Array, ""] | float = 0.5) -> Solver:
    """Follow dz/dt = −z + f(z) by Euler steps of length dt, in units of the time constant τ.

    Converges near z* iff |1 − dt (1 − λ)| < 1 for every eigenvalue λ of ∂f/∂z.  So a continuous relaxation that is
    stable (Re λ < 1) can always be followed by a small enough dt, also where `picard()`, which is dt = 1, diverges:
    λ = −3 needs dt < 0.5.

    Args:
        dt: positive step length; may be traced.

    Reference: Almeida (1987), IEEE ICNN; Pineda (1987), Physical Review Letters 59.
    """
    if isinstance(dt, int | float) and not dt > 0:
        raise ValueError(f"dt must be positive, got {dt}. Take dt in (0, 1]; 1 is plain iteration.")

    def update(updates, state, params=None, **extra):  # optax's names: the residual, nothing, and z
        del params, extra
        return jax.tree.map(lambda r: -jnp.asarray(dt, r.dtype) * r, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class History(NamedTuple):
    """The last iterates of one relaxation, newest in `slot(count − 1)`; rows not yet written are zero."""

    z: Inexact[Array, "depth n"]
    r: Inexact[Array, "depth n"]
    gram: Inexact[Array, "depth depth"]  # ⟨r_i, r_j⟩
    count: Int[Array, ""]


def anderson(depth: int = 5, ridge: float = 1e-8) -> Solver:
    """Extrapolate from the last `depth` iterates: weights w (sum 1) minimise |Σ_i w_i r_i|.

    `anderson(depth=1)` is `picard()`.  On a linear map of n dimensions `anderson(n + 1)` needs at most n + 1 steps.

    Args:
        depth: iterates remembered, at least 1.
        ridge: added to the Gram matrix relative to its own diagonal, so it weighs the same near the solution as far
            from it; never less than four units of rounding.

    Reference: Walker & Ni (2011), SIAM J. Numer. Anal. 49.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}. Take 5; 1 is plain iteration.")

    def init(params: PyTree) -> History:
        flat = ravel_pytree(params)[0]
        rows = jnp.zeros((depth, *flat.shape), flat.dtype)
        return History(rows, rows, jnp.zeros((depth, depth), flat.dtype), jnp.int32(0))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra) -> tuple[PyTree, History]:
        del extra  # optax's names: the residual, the history, and z
        flat, unravel = ravel_pytree(params)
        past = _remember(state, flat, ravel_pytree(updates)[0])
        w = _mixing_weights(past, ridge)
        return unravel(w @ (past.z - past.r) - flat), past  # f(z_i) = z_i − r_i

    return optax.GradientTransformationExtraArgs(init, update)


def _remember(past: History, z: Inexact[Array, "n"], r: Inexact[Array, "n"]) -> History:
    """Overwrite the oldest iterate, and its row and column of the Gram matrix."""
    slot = past.count % past.r.shape[0]
    rows = past.r.at[slot].set(r)
    row = rows.conj() @ r
    gram = past.gram.at[:, slot].set(row).at[slot, :].set(row.conj())
    return History(past.z.at[slot].set(z), rows, gram, past.count + 1)


def _mixing_weights(past: History, ridge: float) -> Inexact[Array, "depth"]:
    """Solve (G + ridge · diag G) w ∝ 1 over the rows written so far."""
    depth, dtype = past.gram.shape[0], past.gram.dtype
    written = jnp.arange(depth, dtype=jnp.int32) < past.count
    size = jnp.sqrt(jnp.diagonal(past.gram).real)
    size = jnp.where(written & (size > 0), size, jnp.ones_like(size)).astype(dtype)  # a zero residual: already there
    cosine = past.gram / (size[:, None] * size[None, :])
    softened = cosine + max(ridge, 4 * float(jnp.finfo(dtype).eps)) * jnp.eye(depth, dtype=dtype)
    softened = jnp.where(written[:, None] & written[None, :], softened, jnp.eye(depth, dtype=dtype))
    w = _eliminate(softened, jnp.where(written, 1 / size, jnp.zeros_like(size))) / size
    return w / jnp.sum(w)


def _eliminate(a: Inexact[Array, "n n"], b: Inexact[Array, "n"]) -> Inexact[Array, "n"]:
    """Solve a x = b for a small positive definite a of unit diagonal, by Gauss and Jordan, which needs no pivots then.

    Plain arithmetic: it fuses and batches, and LAPACK's batched routines can block each other for ever where seeds lie
    on several CPU devices (jaxlib 0.10: they wait inside the thread pool that they need).
    """
    table = jnp.concatenate([a, b[:, None]], axis=1)
    for k in range(len(b)):
        pivot = jnp.maximum(table[k, k].real, jnp.finfo(a.dtype).eps)
        row = table[k] / pivot.astype(a.dtype)
        table = (table - table[:, k, None] * row).at[k].set(row)
    return table[:, -1]


EXAMPLES: dict[str, Solver] = {
    "picard": picard(),
    "damped": damped(0.3),
    "relaxation": relaxation(0.5),
    "anderson": anderson(),
}
