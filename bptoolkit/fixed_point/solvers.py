"""Relaxation methods for z = f(z): each turns the residual r = z − f(z) into the next update of z.

A solver is an optax transformation, so optax's own optimisers are solvers too: `optax.sgd(1.0)` is `picard()`, and
`optax.sgd(0.5, momentum=0.3)` the heavy ball.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Inexact, Int

from bptoolkit import trees
from bptoolkit.counts import check_whole, fails, nonnegative, positive
from bptoolkit.types import PyTree, State

__all__ = ["Solver", "anderson", "damped", "picard", "relaxation"]

Solver = optax.GradientTransformationExtraArgs
"""A relaxation method: an optax transformation whose "gradient" is the residual r = z − f(z) of one example.

`init(z) -> memory`; `update(r, memory, z, *, f, …) -> (Δz, memory)`, of which further arguments are those that the
driver was given (`resolvent`).  Any optax optimiser is one.
"""

FIRST = 0.25  # step length of Euler before anything has been seen
GROW = 1.1  # of the step length, at most
NOISE = 128  # units of rounding of the state below which a residual is one of rounding
FLATTEST = 0.05  # cosine of the angle between Δz and Δr below which the step shrinks no further


def settled_solver(solver: optax.GradientTransformation | None) -> Solver:
    """The solver, `picard()` for None, in the form that takes further arguments.

    Raises:
        ValueError: something else than a solver, such as the function that makes one.
    """
    if solver is None:
        return picard()
    if not isinstance(solver, optax.GradientTransformation):
        named = getattr(solver, "__name__", type(solver).__name__)
        raise ValueError(f"solver must be a Solver, as picard() or anderson() make one, got {named}.")
    return optax.with_extra_args_support(solver)


def picard() -> Solver:
    """Replace z by f(z).  Contracts only if the spectral radius of ∂f/∂z is below one at the fixed point."""
    return relaxation(1.0)


def damped(damping: Float[Array, ""] | float) -> Solver:
    """z ← damping · z + (1 − damping) · f(z).  `damped(0)` is `picard()`.

    Args:
        damping: share of the old state that is kept, in [0, 1); may be traced.

    Raises:
        ValueError: a damping outside [0, 1).
    """
    if fails(lambda d: (d >= 0) & (d < 1), damping):
        raise ValueError(f"damping must be in [0, 1), got {damping}. Take 0 for plain iteration.")
    return relaxation(1.0 - damping)


def relaxation(dt: Float[Array, ""] | float | None = None) -> Solver:
    """Follow dz/dt = −z + f(z) by Euler steps of length dt, in units of the time constant τ.

    Converges near z* iff |1 − dt (1 − λ)| < 1 for every eigenvalue λ of ∂f/∂z.  So a continuous relaxation that is
    stable (Re λ < 1) can always be followed by a small enough dt, also where `picard()`, which is dt = 1, diverges:
    λ = −3 needs dt < 0.5.

    Without dt it is found on the way.  Since Δr = (I − J) Δz, the last step shows the dt that would have shrunk its
    residual most, and dt grows by at most a tenth a step, up to 1, but shrinks to that at once:

        dt ← min(1.1 dt, max(⟨Δz, Δr⟩/|Δr|², |Δz|/(20 |Δr|)), 1).

    That is at most 2/(1 − λ) of any real mode that makes up the residual, and Re(1 − λ)/|1 − λ|² of a rotating one.
    Rotations nearly as fast as |Im λ| = 20 (1 − Re λ) and beyond, and strongly non-normal J, need a smaller dt by hand.

    Args:
        dt: positive step length; may be traced.

    Raises:
        ValueError: a dt that is not positive and finite.

    Reference: Almeida (1987), IEEE ICNN; Pineda (1987), Physical Review Letters 59; Barzilai & Borwein (1988), IMA
    Journal of Numerical Analysis 8 (the step length).
    """
    if dt is None:
        return optax.GradientTransformationExtraArgs(_pace, _euler)
    if fails(positive, dt):
        raise ValueError(f"dt must be positive and finite, got {dt}. Take dt in (0, 1]; 1 is plain iteration.")

    def update(updates, state, params=None, **extra):  # optax's names: the residual, nothing, and z
        del params, extra
        return jax.tree.map(lambda r: -jnp.asarray(dt, r.dtype) * r, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class Pace(NamedTuple):
    """What Euler steps carry that find their own length."""

    r: State  # the residual before the last step
    dt: Float[Array, ""]  # length of the last step; 0 before the first


def _pace(params: PyTree) -> Pace:
    """No step yet; dt in the widest real dtype of the state, float32 at least."""
    widest = max((jnp.finfo(x.dtype) for x in jax.tree.leaves(params)), key=lambda info: info.bits)
    return Pace(trees.zeros_like(params), jnp.zeros((), widest.dtype if widest.bits >= 32 else jnp.float32))


def _euler(updates: PyTree, state: PyTree, params: PyTree = None, **extra) -> tuple[PyTree, Pace]:
    """−dt r, with the dt that the last step and its change of residual allow."""
    del params, extra  # optax's names: the residual, the pace, and z
    r, dt = lax.stop_gradient(updates), state.dt
    change = trees.subtract(r, state.r)  # Δr, where Δz = −dt · state.r
    square = jnp.maximum(_inner(change, change, dt), jnp.finfo(dt.dtype).tiny)
    best = -dt * _inner(state.r, change, dt) / square
    least = FLATTEST * dt * jnp.sqrt(_inner(state.r, state.r, dt) / square)
    found = jnp.minimum(jnp.minimum(GROW * dt, jnp.maximum(best, least)), 1)
    dt = jnp.where(dt == 0, jnp.full_like(dt, FIRST), found)
    return jax.tree.map(lambda x: -dt.astype(x.dtype) * x, updates), Pace(r, dt)


def _inner(a: PyTree, b: PyTree, like: Float[Array, ""]) -> Float[Array, ""]:
    """Re⟨a, b⟩ over the whole tree, in float32 or wider."""
    wide = lambda x: x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)
    products = jax.tree.map(lambda x, y: jnp.sum((wide(x).conj() * wide(y)).real).astype(like.dtype), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros_like(like))


class History(NamedTuple):
    """The last iterates of one relaxation, newest in row (count − 1) mod depth; rows not yet written are zero."""

    f: Inexact[Array, "depth n"]  # f(z_i) = z_i − r_i
    r: Inexact[Array, "depth n"]  # r_i/|r_i|, by the largest entry: products then neither over- nor underflow
    sizes: Float[Array, "depth"]  # |r_i|
    gram: Inexact[Array, "depth depth"]  # of the rows of r, in float32 or wider
    count: Int[Array, ""]


def anderson(depth: int = 5, ridge: float = 1e-8) -> Solver:
    """Extrapolate from the last `depth` iterates: weights w (sum 1) minimise |Σ_i w_i r_i|.

    `anderson(depth=1)` is `picard()`.  On a linear map of n dimensions `anderson(n + 1)` needs at most n + 1 steps.
    Where it is differentiated (`unrolled`), a step from a residual at the level of rounding has no derivative: its
    weights are noise.

    Args:
        depth: iterates remembered, at least 1.
        ridge: added to the Gram matrix relative to its own diagonal, so it weighs the same near the solution as far
            from it; never less than four units of rounding.

    Raises:
        ValueError: a depth that is no whole number of at least 1, a ridge that is negative or not finite.

    Reference: Walker & Ni (2011), SIAM J. Numer. Anal. 49.
    """
    check_whole(1, "Take 5; 1 is plain iteration.", depth=depth)
    if fails(nonnegative, ridge):
        raise ValueError(f"ridge must be at least 0 and finite, got {ridge}. Take 1e-8, or 0 for the least.")

    def init(params: PyTree) -> History:
        flat = ravel_pytree(params)[0]
        rows = jnp.zeros((depth, *flat.shape), flat.dtype)
        wide = flat.dtype if jnp.finfo(flat.dtype).bits >= 32 else jnp.dtype(jnp.float32)
        sizes = jnp.zeros(depth, jnp.finfo(wide).dtype)
        return History(rows, rows, sizes, jnp.zeros((depth, depth), wide), jnp.int32(0))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, live: Bool[Array, ""] | bool = True, **extra
    ) -> tuple[PyTree, History]:
        del extra  # optax's names: the residual, the history, and z
        flat, unravel = ravel_pytree(params)
        r = ravel_pytree(updates)[0]
        size = jnp.max(jnp.abs(r), initial=0)
        noise = size <= NOISE * float(jnp.finfo(flat.dtype).eps) * jnp.max(jnp.abs(flat), initial=0)
        r = jnp.where(noise, lax.stop_gradient(r), r)
        past = _remember(state, flat, r, live)
        moved = _mixing_weights(past, ridge).astype(flat.dtype) @ past.f - flat
        return unravel(jnp.where(noise, lax.stop_gradient(moved), moved)), past

    return optax.GradientTransformationExtraArgs(init, update)


def _remember(past: History, z: Inexact[Array, "n"], r: Inexact[Array, "n"], live: Bool[Array, ""] | bool) -> History:
    """Overwrite the oldest iterate, and its row and column of the Gram matrix; count alone goes on where not live.

    So all samples of a batch write to the same slot, which is an update in place and no scatter.
    """
    slot = past.count % past.r.shape[0]
    held = lambda rows: lax.dynamic_index_in_dim(rows, slot, keepdims=False)
    put = lambda rows, row: lax.dynamic_update_index_in_dim(rows, row, slot, 0)  # in place: `at` looks for bounds
    size = jnp.max(jnp.abs(r), initial=0).astype(past.sizes.dtype)
    unit = (r.astype(past.gram.dtype) / jnp.where(size > 0, size, 1).astype(past.gram.dtype)).astype(r.dtype)
    rows = put(past.r, jnp.where(live, unit, held(past.r)))
    images = put(past.f, jnp.where(live, z - r, held(past.f)))
    sizes = put(past.sizes, jnp.where(live, size, held(past.sizes)))
    row = jnp.matmul(rows.conj(), unit, preferred_element_type=past.gram.dtype)
    gram = put(lax.dynamic_update_index_in_dim(past.gram, row, slot, 1), row.conj())
    return History(images, rows, sizes, jnp.where(live, gram, past.gram), past.count + 1)


def _mixing_weights(past: History, ridge: float) -> Inexact[Array, "depth"]:
    """Solve (G + ridge · diag G) w ∝ 1 over the rows written so far, as (C + ridge) (s w) ∝ 1/s with s² = diag G.

    The s count in units of the smallest of them, so that 1/s cannot overflow.

    Number by number: a batch then lies along the vector units in one fused loop, where arrays of depth × depth would
    not fill them.
    """
    dtype = past.gram.dtype
    least = float(jnp.finfo(past.r.dtype).eps)
    sizes = [past.sizes[i] for i in range(len(past.gram))]
    squares = [past.gram[i, i].real for i in range(len(past.gram))]  # of rows whose largest entry is 1
    there = [square > 0 for square in squares]
    unit = reduce(jnp.minimum, [jnp.where(some, size, jnp.inf) for some, size in zip(there, sizes, strict=True)])
    lengths = [lax.rsqrt(jnp.where(some, square, 1)) for some, square in zip(there, squares, strict=True)]
    written = [jnp.where(i < past.count, jnp.ones_like(size), jnp.zeros_like(size)) for i, size in enumerate(sizes)]
    relative = [unit / jnp.where(some, size, 1) for some, size in zip(there, sizes, strict=True)]
    inverse = [
        jnp.where(some, ratio * length, here)
        for some, ratio, length, here in zip(there, relative, lengths, written, strict=True)
    ]
    cosine = [[past.gram[i, j] * (lengths[i] * lengths[j]).astype(dtype) for j in range(i)] for i in range(len(sizes))]
    one = jnp.full_like(sizes[0], 1 + max(ridge, 4 * least))
    solved = _eliminate(cosine, one, [x.astype(dtype) for x in inverse], least)
    w = [x * scale.astype(dtype) for x, scale in zip(solved, inverse, strict=True)]
    return jnp.stack(w) / sum(w)


def _eliminate(below: list[list], diagonal: Float[Array, ""], right: list, least: float) -> list:
    """Solve a x = right, a Hermitian positive definite, by Gauss, which needs no pivots then.

    LAPACK's batched routines can block each other for ever where seeds lie on several CPU devices (jaxlib 0.10: they
    wait inside the thread pool that they need).
    """
    n, below, right = len(right), [list(row) for row in below], list(right)
    diagonals = [diagonal] * n
    for k in range(n):
        inverse = (1 / jnp.maximum(diagonals[k], least)).astype(right[k].dtype)
        for i in range(k + 1, n):
            share = below[i][k] * inverse
            diagonals[i] = diagonals[i] - (share * below[i][k].conj()).real
            for j in range(k + 1, i):
                below[i][j] = below[i][j] - share * below[j][k].conj()
            right[i] = right[i] - share * right[k]
    for k in reversed(range(n)):
        for j in range(k + 1, n):
            right[k] = right[k] - below[j][k].conj() * right[j]
        right[k] = right[k] / jnp.maximum(diagonals[k], least).astype(right[k].dtype)
    return right


EXAMPLES: dict[str, Solver] = {
    "picard": picard(),
    "damped": damped(0.3),
    "relaxation": relaxation(0.5),
    "relaxation, automatic": relaxation(),
    "anderson": anderson(),
}
