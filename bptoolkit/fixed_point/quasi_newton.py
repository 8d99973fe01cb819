"""Broyden's method: learn (I − J)⁻¹ from the steps made, and reuse what was learned for the adjoint."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Inexact, Int

from bptoolkit.counts import check_whole
from bptoolkit.fixed_point.adjoints import Adjoint, Biased
from bptoolkit.fixed_point.solve import Solution, Status, certified
from bptoolkit.fixed_point.solvers import Solver
from bptoolkit.types import PyTree, State

__all__ = ["Factors", "broyden", "shine"]


WORSE = 10.0  # growth of the residual in one step that shows H to be wrong


class Factors(NamedTuple):
    """H = I + Σ_i u_i v_iᴴ, which approximates (I − J)⁻¹; rows not yet written are zero."""

    u: Inexact[Array, "memory n"]
    v: Inexact[Array, "memory n"]
    moved: Inexact[Array, "n"]  # the last step
    r: Inexact[Array, "n"]  # the residual it started from
    count: Int[Array, ""]


def broyden(memory: int = 10) -> Solver:
    """Broyden's good method of limited memory: Δz = −H r, with H corrected by rank one so that H Δr = Δz.

        H ← H + (Δz − H Δr) Δzᴴ H / (Δzᴴ H Δr)

    The first step is that of `picard()`.  Where memory runs out, or the residual has grown, it begins anew with H = I.
    Its `Factors` serve `shine`.  For smooth maps; two passes over 2 · memory · n numbers a step.

    Args:
        memory: corrections kept, at least 1.

    Raises:
        ValueError: a memory that is no whole number of at least 1.

    Reference: Broyden (1965), Math. Comp. 19; Bai et al. (2020), NeurIPS, for its use in equilibrium networks.
    """
    check_whole(1, "Take 10; picard() keeps none.", memory=memory)

    def init(params: PyTree) -> Factors:
        flat = ravel_pytree(params)[0]
        rows, still = jnp.zeros((memory, *flat.shape), flat.dtype), jnp.zeros_like(flat)
        return Factors(rows, rows, still, still, jnp.int32(0))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra) -> tuple[PyTree, Factors]:
        del params, extra  # optax's names: the residual, the factors, and z
        r, unravel = ravel_pytree(updates)
        learned = _learn(state, r)
        moved = -_times(learned.u, learned.v, r)
        return unravel(moved), learned._replace(moved=moved, r=r, count=learned.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _learn(past: Factors, r: Inexact[Array, "n"]) -> Factors:
    """The factors after the step past.moved has turned the residual past.r into r."""
    slot = past.count % past.u.shape[0]
    worse = jnp.linalg.norm(r) > WORSE * jnp.linalg.norm(past.r)
    anew = (slot == 0) | worse
    u, v = (jnp.where(anew, jnp.zeros_like(rows), rows) for rows in (past.u, past.v))
    slot = jnp.where(worse, 0, slot)
    predicted = _times(u, v, r - past.r)
    overlap = jnp.vdot(past.moved, predicted)
    size = jnp.linalg.norm(past.moved) * jnp.linalg.norm(predicted)
    usable = (past.count > 0) & (jnp.abs(overlap) > 1e-3 * size)  # else the correction is mostly rounding
    safe = jnp.where(usable, overlap, jnp.ones_like(overlap))
    correction = jnp.where(usable, (past.moved - predicted) / safe, jnp.zeros_like(r))
    direction = jnp.where(usable, _times(v, u, past.moved), jnp.zeros_like(r))
    return past._replace(u=u.at[slot].set(correction), v=v.at[slot].set(direction), count=slot)


def _times(u: Inexact[Array, "m n"], v: Inexact[Array, "m n"], x: Inexact[Array, "n"]) -> Inexact[Array, "n"]:
    """(I + Σ u_i v_iᴴ) x."""
    return x + (v.conj() @ x) @ u


def shine(refine: int = 0) -> Biased:
    """λ ≈ Hᴴ g with the H that a forward `broyden` has learned, then `refine` steps λ ← λ + Hᴴ(Jᵀλ + g − λ).

    Biased: costs no product with Jᵀ at refine = 0, and the error falls with each refinement where H is near
    (I − J)⁻¹.  In place of H it takes the identity, as `neumann(refine)` does, where there are no factors: in forward
    mode.  The Solution holds the true residual, and says MAX_STEPS unless that is within the default tolerance.

    Args:
        refine: steps after the first guess, at least 0.

    Raises:
        ValueError: steps that are no whole number of at least 0; a forward solver that is not `broyden`; a complex
            state.

    Reference: Ramzi et al. (2022), ICLR, "SHINE".
    """
    check_whole(0, "Take 0 for the shared inverse alone.", refine=refine)

    def adjoint(matvec, g: State, *, start: State | None = None, factors: PyTree = None) -> Solution:
        del start  # the shared inverse is the start
        flat, unravel = ravel_pytree(g)
        inverse = _shared_inverse(factors, flat)
        push = lambda v: ravel_pytree(matvec(unravel(v)))[0]
        value = inverse(flat)
        for _ in range(refine):
            value = value + inverse(push(value) + flat - value)
        solution = certified(lambda v: push(v) + flat, value)
        converged = solution.status == Status.CONVERGED
        status = jnp.where(converged, jnp.int32(Status.CONVERGED), jnp.int32(Status.MAX_STEPS))
        return solution._replace(value=unravel(solution.value), steps=jnp.int32(refine), status=status)

    return Biased(adjoint)


def _shared_inverse(factors: PyTree, g: Inexact[Array, "n"]):
    if factors is None:
        return lambda x: x
    if not isinstance(factors, Factors):
        raise ValueError(
            f"shine needs the factors of a forward broyden solver, got those of {type(factors).__name__}.\n"
            "Take implicit(broyden(), shine())."
        )
    if jnp.iscomplexobj(factors.u):
        raise ValueError(f"shine needs a real state, got {factors.u.dtype} factors. Take exact() for complex states.")
    u, v = jax.lax.stop_gradient((factors.u.astype(g.dtype), factors.v.astype(g.dtype)))
    return lambda x: _times(v, u, x)


EXAMPLES: dict[str, Solver] = {"broyden": broyden()}
ADJOINTS: dict[str, Adjoint] = {"shine": shine(), "shine refined": shine(5)}
