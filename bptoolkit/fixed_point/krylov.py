"""Krylov methods for (I − A) λ = g, where A is Jᵀ (or J in forward mode): exact adjoints that need no contraction.

Each works on one vector in float32 or wider and stops, as `solve` does, on an estimate of the error ‖λ − λ*‖:

    ‖r‖ · (Σ_i ‖Δλ_i‖²/‖Δr_i‖²)^½,     r = g − (I − A) λ

Where the images Δr_i of the directions are orthogonal, as in `gmres` and `cg_normal`, the sum is the squared Frobenius
norm of (I − A)⁻¹ on all that was searched.  A mode that g hardly excites has not been searched, and is not seen.
CONVERGED is said of the true residual alone.  `residual` and `error` are those of λ before it is rounded to a half
precision state; λ is never worse than the start.  `steps` counts products with A and with Aᵀ, of the start's residual
too, but not the last one, which certifies λ.  Plain arithmetic, no LAPACK: they batch, and lower for every backend.

Reference for the estimate: Paige & Saunders (1982), ACM Trans. Math. Softw. 8, section 5.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Inexact, Int

from bptoolkit import trees
from bptoolkit.counts import check_whole
from bptoolkit.fixed_point.adjoints import Adjoint, Matvec
from bptoolkit.fixed_point.arguments import Stop, check_stop
from bptoolkit.fixed_point.batch import anyone
from bptoolkit.fixed_point.sizes import norm
from bptoolkit.fixed_point.solve import RUNNING, Rule, Solution, Status, first_that_holds, settled_dtypes
from bptoolkit.types import Memory, State

__all__ = ["bicgstab", "cg_normal", "gmres"]

LOST = 32  # products without a smaller residual, once it is at the level of rounding

Vector: TypeAlias = Inexact[Array, "n"]
Product: TypeAlias = Callable[[Vector], Vector]

HIGHEST = lax.Precision.HIGHEST  # TF32 or bfloat16 products would cost the directions their orthogonality
SLACK = 3  # of the tolerance, once nothing but rounding can separate the true residual from the recurrence


class Task(NamedTuple):
    """The system (I − A) x = b in working precision, and when x is good enough."""

    product: Product  # v ↦ (I − A) v
    b: Vector
    rule: Rule


class Round(NamedTuple):
    """An x with its true residual: where a search begins, and what it comes to."""

    x: Vector
    r: Vector  # b − (I − A) x
    steps: Int[Array, ""]
    factor: Float[Array, ""]  # error over residual; 0 while nothing is known
    status: Int[Array, ""]


class Search(NamedTuple):
    """One search for x under way."""

    x: Vector
    r: Vector  # b − (I − A) x, by recurrence
    own: Any  # what the method itself carries
    steps: Int[Array, ""]
    factor: Float[Array, ""]
    best: Float[Array, ""]  # smallest ‖r‖ so far
    lost: Int[Array, ""]  # products since then
    status: Int[Array, ""]


def gmres(memory: int = 20, stop: Stop = Stop()) -> Adjoint:
    """The smallest residual over the Krylov space, as generalised conjugate residuals: one product a step.

    The iterates are those of GMRES until `memory` directions are kept; then the oldest gives way, in place of a new
    beginning.  Where a residual is (nearly) orthogonal to its own image, the space is extended by the image instead,
    so that it does not break down.  2 · memory vectors of storage, and three passes over them a step.

    Args:
        memory: directions kept, at least 1.
        stop: as for `solve`; max_steps counts products.

    Raises:
        ValueError: a memory that is no whole number of at least 1.

    Reference: Saad & Schultz (1986), SIAM J. Sci. Stat. Comput. 7; Eisenstat, Elman & Schultz (1983), SIAM J. Numer.
    Anal. 20, for this form.
    """
    check_whole(1, "Take 20.", memory=memory)

    def begin(r: Vector) -> tuple:
        rows = jnp.zeros((memory, *r.shape), r.dtype)
        return rows, rows, r, jnp.int32(0)  # directions, their orthonormal images, the next direction, how many

    def step(product: Product, x: Vector, r: Vector, own: tuple) -> tuple:
        directions, images, p, count = own
        image = product(p)
        length = norm(image)
        for _ in range(2):  # once more, for what rounding has left
            weights = jnp.matmul(images.conj(), image, precision=HIGHEST)
            image = image - jnp.matmul(weights, images, precision=HIGHEST)
            p = p - jnp.matmul(weights, directions, precision=HIGHEST)
        left = norm(image)
        exhausted = left <= 8 * float(jnp.finfo(r.dtype).eps) * length
        scale = jnp.where(exhausted, jnp.ones_like(left), 1 / jnp.maximum(left, jnp.finfo(left.dtype).tiny))
        image, p = image * scale.astype(r.dtype), p * scale.astype(r.dtype)
        alpha = _dot(image, r)
        following = r - alpha * image
        slot = count % memory
        little = jnp.abs(alpha) < 0.1 * norm(r)
        kept = (directions.at[slot].set(p), images.at[slot].set(image), jnp.where(little, image, following), count + 1)
        return x + alpha * p, following, kept, norm(p), exhausted

    return _adjoint(begin, step, 1, stop)


def bicgstab(stop: Stop = Stop()) -> Adjoint:
    """Stabilised bi-conjugate gradients: two products a step and seven vectors, however many steps it takes.

    The residual need not fall at each step.  Breakdown, or 128 products without progress, ends as SINGULAR though
    I − A may have an inverse: rare for ρ(A) ≤ 1, usual where the eigenvalues of I − A surround zero.

    Args:
        stop: as for `solve`; max_steps counts products.

    Reference: van der Vorst (1992), SIAM J. Sci. Stat. Comput. 13.
    """

    def begin(r: Vector) -> tuple:
        return r, r, _dot(r, r)  # the shadow residual, the direction, ⟨shadow, r⟩

    def step(product: Product, x: Vector, r: Vector, own: tuple) -> tuple:
        shadow, p, rho = own
        v = product(p)
        bottom = _dot(shadow, v)
        alpha = _over(rho, bottom)
        s = r - alpha * v
        t = product(s)
        omega = _over(_dot(t, s), _dot(t, t))
        moved, following = alpha * p + omega * s, s - omega * t
        rho_next = _dot(shadow, following)
        beta = _over(rho_next, rho) * _over(alpha, omega)
        broken = (jnp.abs(bottom) == 0) | ((jnp.abs(omega) == 0) & (norm(s) > 0))
        ratio = norm(moved) / jnp.maximum(norm(r - following), jnp.finfo(norm(r).dtype).tiny)
        return x + moved, following, (shadow, following + beta * (p - omega * v), rho_next), ratio, broken

    return _adjoint(begin, step, 2, stop)


def cg_normal(stop: Stop = Stop()) -> Adjoint:
    """Conjugate gradients on (I − A)ᴴ (I − A) λ = (I − A)ᴴ g: two products a step, one of them transposed.

    Its residual never rises, and it needs nothing of A; the price is the squared condition number, so in float32 it
    ends as STALLED where ρ is near one and the tolerance is tight.

    Args:
        stop: as for `solve`; max_steps counts products.

    Reference: Hestenes & Stiefel (1952), J. Res. Natl. Bur. Stand. 49; Saad (2003), Iterative Methods, section 8.3.
    """

    def begin(r: Vector) -> tuple:
        return jnp.zeros_like(r), jnp.zeros((), r.dtype)  # the direction, ‖(I − A)ᴴ r‖²

    def step(product: Product, x: Vector, r: Vector, own: tuple) -> tuple:
        p, before = own
        transposed = jax.linear_transpose(product, r)
        slope = transposed(r.conj())[0].conj()
        size = _dot(slope, slope)
        p = slope + _over(size, before) * p
        image = product(p)
        alpha = _over(size, _dot(image, image))
        ratio = norm(p) / jnp.maximum(norm(image), jnp.finfo(norm(r).dtype).tiny)
        return x + alpha * p, r - alpha * image, (p, size), ratio, norm(image) == 0

    return _adjoint(begin, step, 2, stop)


def _adjoint(begin: Callable, step: Callable, products: int, stop: Stop) -> Adjoint:
    """A method as an adjoint: ravelled, widened, scaled to max |b| = 1, driven to the tolerance, certified.

    The scale keeps squares within float32 and products within float16, whatever the size of g.
    """
    check_stop(stop)

    def adjoint(matvec: Matvec, g: State, *, start: State | None = None, factors: Memory = None) -> Solution:
        del factors
        narrow, unravel = ravel_pytree(g)
        wide = narrow.dtype if jnp.finfo(narrow.dtype).bits >= 32 else jnp.dtype(jnp.float32)
        unit = jnp.max(jnp.abs(narrow.astype(wide)), initial=0)
        nothing = unit == 0
        unit = jnp.where(nothing, jnp.ones_like(unit), unit)
        back = lambda v: unravel(v.astype(narrow.dtype))
        product = lambda v: v - ravel_pytree(matvec(back(v)))[0].astype(wide)
        rule = settled_dtypes(stop, g)
        task = Task(product, narrow.astype(wide) / unit.astype(wide), rule._replace(atol=rule.atol / unit))

        first = _at_zero(task)
        if start is not None:
            given = _at(task, ravel_pytree(start)[0].astype(wide) / unit.astype(wide))
            first = trees.choose(nothing, first, given)
        running = lambda at: anyone(at.status == RUNNING)
        last = lax.while_loop(running, lambda at: _certified(begin, step, products, task, at), first)
        true = norm(last.r)
        shrunk = true / jnp.maximum(norm(first.r), jnp.finfo(true.dtype).tiny)
        rate = shrunk ** (1 / jnp.maximum(last.steps, 1).astype(true.dtype))
        error = true * unit * jnp.where(last.factor > 0, last.factor, 1)
        return Solution(back(last.x * unit.astype(wide)), true * unit, last.steps, rate, last.status, None, error)

    return adjoint


def _at_zero(task: Task) -> Round:
    """x = 0, which costs no product."""
    return Round(jnp.zeros_like(task.b), task.b, jnp.int32(0), jnp.zeros_like(norm(task.b)), jnp.int32(RUNNING))


def _at(task: Task, x: Vector) -> Round:
    """Any other x, at one product."""
    return _at_zero(task)._replace(x=x, r=task.b - task.product(x), steps=jnp.int32(1))


def _certified(begin: Callable, step: Callable, products: int, task: Task, at: Round) -> Round:
    """One search, judged by its true residual, from which its recurrence may have drifted.

    While that halves the residual it is searched again from there; an x worse than the one before is not taken.
    """
    live = at.status == RUNNING
    search = _first(task, at, begin(at.r), products)
    search = search._replace(status=jnp.where(live, search.status, at.status))
    running = lambda search: anyone(search.status == RUNNING)
    search = lax.while_loop(running, lambda search: _advance(task, step, products, search), search)
    r = task.b - task.product(search.x)
    size, before, ended = norm(r), norm(at.r), search.status
    stuck = size > before / 2
    x, r = trees.choose(size > before, (at.x, at.r), (search.x, r))
    within = _within(task, norm(r), norm(x), search.factor / SLACK)
    status = first_that_holds(
        {
            Status.NONFINITE: ~jnp.isfinite(size) | (ended == Status.NONFINITE),
            Status.CONVERGED: (size == 0) | (within & (ended != Status.MAX_STEPS)),
            Status.MAX_STEPS: ended == Status.MAX_STEPS,
            Status.STALLED: stuck & (norm(r) <= _rounding(task, norm(x))),
            Status.SINGULAR: stuck,
        }
    )
    again = jnp.where(status == RUNNING, 1, 0)  # the product above is then the first of the next search
    return trees.choose(live, Round(x, r, search.steps + again, search.factor, status), at)


def _first(task: Task, at: Round, own: Any, products: int) -> Search:
    size = norm(at.r)
    status = first_that_holds(
        {
            Status.NONFINITE: ~jnp.isfinite(size),
            Status.CONVERGED: size == 0,
            Status.MAX_STEPS: at.steps + products > task.rule.max_steps,
        }
    )
    return Search(at.x, at.r, own, at.steps, at.factor, size, jnp.int32(0), status)


def _advance(task: Task, step: Callable, products: int, search: Search) -> Search:
    """One step of a method, and its judgement by the recurrence."""
    x, r, own, ratio, broken = step(task.product, search.x, search.r, search.own)
    size, scale = norm(r), norm(x)
    factor = jnp.hypot(search.factor, ratio)
    steps = search.steps + products
    lost = jnp.where(size < search.best, 0, search.lost + products)
    standing = broken | (lost >= 4 * LOST) | ((lost >= LOST) & (size <= _rounding(task, scale)))
    status = first_that_holds(
        {
            Status.NONFINITE: ~jnp.isfinite(size) | ~jnp.isfinite(scale),
            Status.CONVERGED: _within(task, size, scale, factor) | (size == 0),
            Status.STALLED: standing,
            Status.MAX_STEPS: steps + products > task.rule.max_steps,
        }
    )
    new = Search(x, r, None, steps, factor, jnp.minimum(size, search.best), lost, status)
    return trees.choose(search.status == RUNNING, new, search._replace(own=None))._replace(own=own)


def _within(task: Task, size: Float[Array, ""], scale: Float[Array, ""], factor: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether the estimated error is within the tolerance; it is not where nothing is known of it."""
    return (factor > 0) & (size * factor <= task.rule.atol + task.rule.rtol * scale)


def _rounding(task: Task, scale: Float[Array, ""]) -> Float[Array, ""]:
    """The residual that rounding alone may leave, at ‖x‖ = scale."""
    return 128 * float(jnp.finfo(task.b.dtype).eps) * jnp.maximum(scale, norm(task.b))


def _dot(a: Vector, b: Vector) -> Inexact[Array, ""]:
    return jnp.vdot(a, b, precision=HIGHEST)


def _over(a: Inexact[Array, ""], b: Inexact[Array, ""]) -> Inexact[Array, ""]:
    """a / b, zero where b is."""
    none: Bool[Array, ""] = b == 0
    return jnp.where(none, jnp.zeros_like(a), a / jnp.where(none, jnp.ones_like(b), b))


EXAMPLES: dict[str, Adjoint] = {"gmres": gmres(), "bicgstab": bicgstab(), "cg_normal": cg_normal()}
