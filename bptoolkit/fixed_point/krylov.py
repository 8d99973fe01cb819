"""Krylov methods for (I − A) λ = g, where A is Jᵀ (or J in forward mode): exact adjoints that need no contraction.

Each works on one vector in float32 or wider, stops as `solve` does, on an estimate of the error, and reports the true
residual.  `steps` counts products with A.  Plain arithmetic, no LAPACK: they batch, and lower for every backend.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Inexact, Int

from bptoolkit.fixed_point.adjoints import Adjoint, Matvec
from bptoolkit.fixed_point.solve import (
    FADE,
    LOST,
    RUNNING,
    Rule,
    Solution,
    Status,
    Stop,
    first_that_holds,
    norm,
    settled_dtypes,
)
from bptoolkit.types import Memory, State

__all__ = ["bicgstab", "cg_normal", "gmres"]

Vector: TypeAlias = Inexact[Array, "n"]
Product: TypeAlias = Callable[[Vector], Vector]


class Search(NamedTuple):
    """One search for λ under way."""

    x: Vector
    r: Vector  # g − (I − A) x, by recurrence
    own: Any  # what the method itself carries
    steps: Int[Array, ""]
    factor: Float[Array, ""]  # error over residual
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

    Reference: Saad & Schultz (1986), SIAM J. Sci. Stat. Comput. 7; Eisenstat, Elman & Schultz (1983), SIAM J. Numer.
    Anal. 20, for this form.
    """
    if memory < 1:
        raise ValueError(f"memory must be at least 1, got {memory}. Take 20.")

    def begin(r: Vector) -> tuple:
        rows = jnp.zeros((memory, *r.shape), r.dtype)
        return rows, rows, r, jnp.int32(0)  # directions, their orthonormal images, the next direction, how many

    def step(product: Product, x: Vector, r: Vector, own: tuple) -> tuple:
        directions, images, p, count = own
        image = product(p)
        length = norm(image)
        for _ in range(2):  # once more, for what rounding has left
            weights = images.conj() @ image
            image, p = image - weights @ images, p - weights @ directions
        left = norm(image)
        exhausted = left <= 8 * float(jnp.finfo(r.dtype).eps) * length
        scale = jnp.where(exhausted, jnp.ones_like(left), 1 / jnp.maximum(left, jnp.finfo(left.dtype).tiny))
        image, p = image * scale.astype(r.dtype), p * scale.astype(r.dtype)
        alpha = jnp.vdot(image, r)
        following = r - alpha * image
        slot = count % memory
        little = jnp.abs(alpha) < 0.1 * norm(r)
        kept = (directions.at[slot].set(p), images.at[slot].set(image), jnp.where(little, image, following), count + 1)
        return x + alpha * p, following, kept, norm(p), exhausted

    return _adjoint(begin, step, 1, stop)


def bicgstab(stop: Stop = Stop()) -> Adjoint:
    """Stabilised bi-conjugate gradients: two products a step and seven vectors, however many steps it takes.

    The residual need not fall at each step.  Breakdown, which is rare, ends as SINGULAR.

    Reference: van der Vorst (1992), SIAM J. Sci. Stat. Comput. 13.
    """

    def begin(r: Vector) -> tuple:
        return r, r, jnp.vdot(r, r)  # the shadow residual, the direction, ⟨shadow, r⟩

    def step(product: Product, x: Vector, r: Vector, own: tuple) -> tuple:
        shadow, p, rho = own
        v = product(p)
        bottom = jnp.vdot(shadow, v)
        alpha = _over(rho, bottom)
        s = r - alpha * v
        t = product(s)
        omega = _over(jnp.vdot(t, s), jnp.vdot(t, t))
        moved, following = alpha * p + omega * s, s - omega * t
        rho_next = jnp.vdot(shadow, following)
        beta = _over(rho_next, rho) * _over(alpha, omega)
        broken = (jnp.abs(bottom) == 0) | ((jnp.abs(omega) == 0) & (norm(s) > 0))
        ratio = norm(moved) / jnp.maximum(norm(r - following), jnp.finfo(norm(r).dtype).tiny)
        return x + moved, following, (shadow, following + beta * (p - omega * v), rho_next), ratio, broken

    return _adjoint(begin, step, 2, stop)


def cg_normal(stop: Stop = Stop()) -> Adjoint:
    """Conjugate gradients on (I − A)ᴴ (I − A) λ = (I − A)ᴴ g: two products a step, one of them transposed.

    Its residual never rises, and it needs nothing of A; the price is the squared condition number, so in float32 it
    ends as STALLED where ρ is near one and the tolerance is tight.

    Reference: Hestenes & Stiefel (1952), J. Res. Natl. Bur. Stand. 49; Saad (2003), Iterative Methods, section 8.3.
    """

    def begin(r: Vector) -> tuple:
        return jnp.zeros_like(r), jnp.zeros((), r.dtype)  # the direction, ‖(I − A)ᴴ r‖²

    def step(product: Product, x: Vector, r: Vector, own: tuple) -> tuple:
        p, before = own
        transposed = jax.linear_transpose(product, r)
        slope = transposed(r.conj())[0].conj()
        size = jnp.vdot(slope, slope)
        p = slope + _over(size, before) * p
        image = product(p)
        alpha = _over(size, jnp.vdot(image, image))
        ratio = norm(p) / jnp.maximum(norm(image), jnp.finfo(norm(r).dtype).tiny)
        return x + alpha * p, r - alpha * image, (p, size), ratio, norm(image) == 0

    return _adjoint(begin, step, 2, stop)


def _adjoint(begin: Callable, step: Callable, products: int, stop: Stop) -> Adjoint:
    """A method as an adjoint: ravelled, widened, driven to the tolerance, certified."""

    def adjoint(matvec: Matvec, g: State, *, start: State | None = None, factors: Memory = None) -> Solution:
        del factors
        narrow, unravel = ravel_pytree(g)
        wide = narrow.dtype if jnp.finfo(narrow.dtype).bits >= 32 else jnp.dtype(jnp.float32)
        back = lambda v: unravel(v.astype(narrow.dtype))
        product = lambda v: v - ravel_pytree(matvec(back(v)))[0].astype(wide)
        b = narrow.astype(wide)
        rule = settled_dtypes(stop, g)
        x = jnp.zeros_like(b) if start is None else ravel_pytree(start)[0].astype(wide)
        r = b if start is None else b - product(x)
        used = 0 if start is None else 1

        running = lambda search: search.status == RUNNING
        first = _first(x, r, begin(r), used, rule)
        last = lax.while_loop(running, lambda search: _advance(step, product, products, rule, search), first)
        true = norm(b - product(last.x))
        ahead = jnp.maximum(norm(r), jnp.finfo(true.dtype).tiny)
        rate = (true / ahead) ** (1 / jnp.maximum(last.steps, 1).astype(true.dtype))
        return Solution(back(last.x), true, last.steps, rate, last.status, None, true * last.factor)

    return adjoint


def _first(x: Vector, r: Vector, own: Any, used: int, rule: Rule) -> Search:
    size = norm(r)
    status = first_that_holds(
        {
            Status.NONFINITE: ~jnp.isfinite(size),
            Status.CONVERGED: size == 0,
            Status.MAX_STEPS: jnp.less_equal(rule.max_steps, used),
        }
    )
    return Search(x, r, own, jnp.int32(used), jnp.ones_like(size), size, jnp.int32(0), status)


def _advance(step: Callable, product: Product, products: int, rule: Rule, search: Search) -> Search:
    """One step of a method, and its judgement."""
    x, r, own, ratio, broken = step(product, search.x, search.r, search.own)
    size, scale = norm(r), norm(x)
    factor = jnp.maximum(ratio, FADE * search.factor)
    steps = search.steps + products
    lost = jnp.where(size < search.best, 0, search.lost + products)
    eps = float(jnp.finfo(r.dtype).eps)
    status = first_that_holds(
        {
            Status.NONFINITE: ~jnp.isfinite(size) | ~jnp.isfinite(scale),
            Status.CONVERGED: (size * factor <= rule.atol + rule.rtol * scale) | (size == 0),
            Status.STALLED: (size <= 128 * eps * scale) & ((lost >= LOST) | broken),
            Status.SINGULAR: broken | (lost >= 4 * LOST),
            Status.MAX_STEPS: steps + products > rule.max_steps,
        }
    )
    return Search(x, r, own, steps, factor, jnp.minimum(size, search.best), lost, status)


def _over(a: Inexact[Array, ""], b: Inexact[Array, ""]) -> Inexact[Array, ""]:
    """a / b, zero where b is."""
    none: Bool[Array, ""] = b == 0
    return jnp.where(none, jnp.zeros_like(a), a / jnp.where(none, jnp.ones_like(b), b))


EXAMPLES: dict[str, Adjoint] = {"gmres": gmres(), "bicgstab": bicgstab(), "cg_normal": cg_normal()}
