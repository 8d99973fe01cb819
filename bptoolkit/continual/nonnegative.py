"""The smallest quadratic programme: minimise ½ vᵀPv + qᵀv over v ≥ lower, P symmetric and positive definite.

An active-set method: on the free set F solve P_FF v_F = −(q + P v̄)_F, step towards it until a value meets its bound,
which then leaves F; where none does, the value whose multiplier is most negative joins F.  The objective falls with
every change, so it ends after finitely many.  Made for up to some dozens of values: each step eliminates an n × n
system, without LAPACK, so it runs under `vmap` on any device.

Reference: Lawson & Hanson (1974), Solving Least Squares Problems, ch. 23; Nocedal & Wright (2006), ch. 16.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Minimum", "minimise_above"]


class Minimum(NamedTuple):
    """v, its multipliers Pv + q (≥ 0, and 0 where v is above its bound), and whether the method ended by itself."""

    value: Float[Array, "n"]
    multiplier: Float[Array, "n"]
    solved: Bool[Array, ""]


class _Walk(NamedTuple):
    u: Float[Array, "n"]  # v − lower
    free: Bool[Array, "n"]
    step: Int[Array, ""]
    done: Bool[Array, ""]


def minimise_above(
    p: Float[Array, "n n"], q: Float[Array, "n"], lower: Float[Array, "n"] | float = 0.0, *, rtol: float | None = None
) -> Minimum:
    """The v ≥ lower that minimises ½ vᵀPv + qᵀv.

    Args:
        p: (n, n) symmetric, positive definite; add a ridge where it may be singular.
        q: (n,).
        lower: (n,) or a number.
        rtol: multipliers above −rtol · max |Plower + q| count as zero; a thousand units in the last place if left out.
    """
    n = q.shape[0]
    lower = jnp.broadcast_to(jnp.asarray(lower, q.dtype), (n,))
    c = q + p @ lower
    tolerance = jnp.max(jnp.abs(c)) * (1e3 * jnp.finfo(q.dtype).eps if rtol is None else rtol)

    def step(walk: _Walk) -> _Walk:
        target = _solve(p, -c, walk.free)
        inside = jnp.all(jnp.where(walk.free, target, 1) > 0)
        length = jnp.where(walk.free & (target <= 0), walk.u / jnp.maximum(walk.u - target, jnp.finfo(q.dtype).tiny), 1)
        met = jnp.argmin(length)
        short = jnp.where(jnp.arange(n) == met, 0, walk.u + length[met] * (target - walk.u))
        slope = jnp.where(walk.free, 0, p @ target + c)
        worst = jnp.argmin(slope)
        done = inside & (slope[worst] >= -tolerance)
        joined = walk.free | ((jnp.arange(n) == worst) & ~done)
        left = walk.free & (jnp.arange(n) != met)
        return _Walk(
            jnp.where(inside, target, jnp.where(left, short, 0)), jnp.where(inside, joined, left), walk.step + 1, done
        )

    start = _Walk(jnp.zeros_like(q), jnp.zeros(n, bool), jnp.int32(0), jnp.bool_(False))
    end = lax.while_loop(lambda walk: ~walk.done & (walk.step < 10 * n + 10), step, start)
    return Minimum(lower + end.u, p @ end.u + c, end.done)


def _solve(p: Float[Array, "n n"], b: Float[Array, "n"], free: Bool[Array, "n"]) -> Float[Array, "n"]:
    """P_FF x_F = b_F, and x = 0 elsewhere, by Gauss–Jordan elimination; a positive definite P needs no pivots."""
    n = b.shape[0]
    both = free[:, None] & free[None, :]
    system = jnp.where(both, p, jnp.eye(n, dtype=p.dtype))
    table = jnp.concatenate([system, jnp.where(free, b, 0)[:, None]], axis=1)

    def eliminate(i, table):
        row = table[i] / table[i, i]
        others = table - table[:, i][:, None] * row[None, :]
        return others.at[i].set(row)

    return lax.fori_loop(0, n, eliminate, table)[:, -1]
