"""Ways to solve the transposed, linearised network λ = Jᵀλ + g, with J = ∂f/∂z at the fixed point.

An adjoint is given the product λ ↦ Jᵀλ and g = ∂L/∂z*, and returns a `Solution` whose value is λ.  The gradient with
respect to any argument θ of f is then (∂f/∂θ)ᵀλ.  The same functions serve forward mode, with J for Jᵀ.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Inexact

from bptoolkit import trees
from bptoolkit.counts import check_whole
from bptoolkit.fixed_point.arguments import Stop, check_counts, check_stop, takes
from bptoolkit.fixed_point.sizes import norm
from bptoolkit.fixed_point.solve import Solution, Status, certified, settled_dtypes, solve
from bptoolkit.fixed_point.solvers import Solver, damped, picard, settled_solver
from bptoolkit.types import Memory, State

__all__ = ["SMALL", "Adjoint", "Biased", "almeida_pineda", "dense", "neumann", "one_step", "phantom"]

SMALL = 8  # values of a state up to which elimination costs less than LAPACK, called per sample, and Krylov methods
Matvec: TypeAlias = Callable[[State], State]
Adjoint: TypeAlias = Callable[..., Solution]
"""How λ = Jᵀλ + g is solved: `adjoint(matvec, g, *, start=None, factors=None) -> Solution`, for one example:
    matvec: the product λ ↦ Jᵀλ, linear, on trees of the shape of z*.
    g: ∂L/∂z*.
    start: λ₀, a guess to begin from; g if left out.
    factors: `Solution.memory` of the forward solver, which `shine` reuses.
"""


def check_adjoint(name: str, adjoint: Adjoint) -> None:
    """Raise ValueError for something else than an adjoint, such as the function that makes one."""
    if not takes(adjoint, "start", "factors"):
        named = getattr(adjoint, "__name__", type(adjoint).__name__)
        raise ValueError(f"{name} must be an Adjoint, as almeida_pineda() or gmres() make one, got {named}.")


class Biased(NamedTuple):
    """An adjoint that by design does not solve λ = Jᵀλ + g, so that MAX_STEPS is no failure of it."""

    adjoint: Adjoint

    def __call__(self, matvec: Matvec, g: State, *, start: State | None = None, factors: Memory = None) -> Solution:
        """The approximate λ, with its true residual."""
        return self.adjoint(matvec, g, start=start, factors=factors)


def almeida_pineda(
    solver: Solver | None = None, stop: Stop = Stop(), *, every: int = 1, compact: int | None = None
) -> Adjoint:
    """Relax λ ← Jᵀλ + g from λ₀ = g, on the same solvers and stopping rule as the forward network.

    Jᵀ has the eigenvalues of J, so this converges wherever the forward relaxation by the same solver is stable.
    K steps of `picard()` are the Neumann series up to (Jᵀ)^K g.  Exact.

    Args:
        solver: `picard()` if left out.
        stop, every, compact: as for `solve`; max_steps counts products.

    Raises:
        ValueError: something else than a solver or a `Stop`; every or compact below 1.

    Reference: Almeida (1987), IEEE ICNN; Pineda (1987), Physical Review Letters 59.
    """
    check_counts(every, compact)
    check_stop(stop)
    solver = settled_solver(solver)

    def adjoint(matvec: Matvec, g: State, *, start: State | None = None, factors: Memory = None) -> Solution:
        del factors
        step = lambda v: trees.add(matvec(v), g)
        begun = g if start is None else trees.choose(norm(g) == 0, g, start)  # λ = 0 is exact where g is
        return solve(step, begun, solver, stop, every=every, compact=compact)

    return adjoint


def neumann(terms: int) -> Biased:
    """λ ≈ g + Jᵀg + … + (Jᵀ)^terms g.  Biased: the error is of order ρ^(terms + 1).

    Its Solution holds the true residual, and says MAX_STEPS unless that happens to be within the default tolerance.

    Args:
        terms: products beyond g itself, at least 0; 0 is `one_step()`.

    Raises:
        ValueError: terms that are no whole number of at least 0.

    Reference: Liao et al. (2018), ICML, section 3.4.
    """
    check_whole(0, "Take 0 for the one-step gradient.", terms=terms)
    truncated = _series(picard(), terms)

    def adjoint(matvec: Matvec, g: State, *, start: State | None = None, factors: Memory = None) -> Solution:
        del start, factors  # a series has no start but g
        return _told_of(truncated(matvec, g), terms)

    return Biased(adjoint)


def phantom(steps: int = 5, damping: Float[Array, ""] | float = 0.5) -> Biased:
    """The gradient through `steps` damped steps from the fixed point: with τ = 1 − damping and P = (1 − τ) I + τ Jᵀ,

        λ ≈ τ (I + P + … + P^(steps − 1)) g.

    Biased: λ is short of the exact one by P^steps (I − Jᵀ)⁻¹ g.  `phantom(1, 0)` is `one_step()`.

    Args:
        steps: at least 1.
        damping: in [0, 1); may be traced.

    Raises:
        ValueError: steps that are no whole number of at least 1, a damping outside [0, 1).

    Reference: Geng et al. (2021), NeurIPS, "On training implicit models", unrolled form.
    """
    check_whole(1, "Take 1 for the damped one-step gradient.", steps=steps)
    truncated = _series(damped(damping), steps)

    def adjoint(matvec: Matvec, g: State, *, start: State | None = None, factors: Memory = None) -> Solution:
        del start, factors  # the sum starts from nothing
        return _told_of(truncated(matvec, g, start=trees.zeros_like(g)), steps)

    return Biased(adjoint)


def _series(solver: Solver, terms: int) -> Adjoint:
    """So many steps and no fewer: they are judged after the last one only."""
    return almeida_pineda(solver, Stop(rtol=0.0, max_steps=terms), every=max(terms, 1))


def _told_of(solution: Solution, terms: int) -> Solution:
    """A truncated series, CONVERGED only where it happens to be within the default tolerance."""
    tolerance = settled_dtypes(Stop(), solution.value).rtol * norm(solution.value)
    close = (solution.error <= tolerance) & (solution.status == Status.MAX_STEPS) & (terms > 0)
    return solution._replace(status=jnp.where(close, jnp.int32(Status.CONVERGED), solution.status))


def one_step() -> Biased:
    """λ ≈ g: the gradient through the last step alone.  Biased; a descent direction while ρ is small.

    Reference: Fung et al. (2022), AAAI, "JFB".
    """
    return neumann(0)


def dense() -> Adjoint:
    """Form Jᵀ and solve (I − Jᵀ) λ = g by elimination.  Exact; n products and O(n³) for n state values.

    For small states; half precision is solved in float32.  Up to 8 values it is Gauss and Jordan's, whose steps a batch
    shares; beyond, LAPACK's LU.  A second right-hand side tells about how large ‖(I − Jᵀ)⁻¹‖ is, and so what rounding
    costs: STALLED where that is more than the tolerance, SINGULAR where no digit is left.
    """

    def adjoint(matvec: Matvec, g: State, *, start: State | None = None, factors: Memory = None) -> Solution:
        del start, factors
        flat, unravel = ravel_pytree(g)
        wide = flat.dtype if jnp.finfo(flat.dtype).bits >= 32 else jnp.dtype(jnp.float32)
        unit = jnp.eye(flat.size, dtype=flat.dtype)
        rows = jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0])(unit)
        solved = eliminated if flat.size <= SMALL else jnp.linalg.solve
        sides = jnp.column_stack([flat.astype(wide), _uneven(flat.size, wide)])
        found = solved(unit.astype(wide) - rows.T.astype(wide), sides)
        grown = jnp.linalg.norm(found, axis=0) / jnp.maximum(jnp.linalg.norm(sides, axis=0), jnp.finfo(wide).tiny)
        value = unravel(found[:, 0].astype(flat.dtype))
        return certified(lambda v: trees.add(matvec(v), g), value, jnp.maximum(jnp.max(grown), 1))

    return adjoint


def _uneven(n: int, dtype: jnp.dtype) -> Inexact[Array, "n"]:
    """A vector that no eigenvector of a net that somebody writes down is at right angles to."""
    return 0.5 + jnp.cos(jnp.square(jnp.arange(1, n + 1, dtype=dtype)))


def eliminated(a: Inexact[Array, "n n"], b: Inexact[Array, "n k"]) -> Inexact[Array, "n k"]:
    """The solution of a x = b by Gauss–Jordan elimination with row pivots; infinite or NaN where a is singular."""
    table = jnp.column_stack([a, b])
    for k in range(len(a)):  # written out: a loop would copy the table at each step
        highest = k + jnp.argmax(jnp.abs(table[k:, k]))
        swapped = table.at[highest].set(table[k])
        pivot = table[highest] / table[highest, k]
        table = (swapped - jnp.outer(swapped[:, k], pivot)).at[k].set(pivot)
    return table[:, len(a) :]


EXAMPLES: dict[str, Adjoint] = {
    "almeida_pineda": almeida_pineda(),
    "neumann": neumann(5),
    "one_step": one_step(),
    "phantom": phantom(),
    "dense": dense(),
}
EXACT = ("almeida_pineda", "dense")
