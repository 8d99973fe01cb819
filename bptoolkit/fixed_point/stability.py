"""Whether a relaxation settles, and how to build weights with which it does.

With J = ∂f/∂z at z, and λ over the eigenvalues of J:

    z ← f(z)                    settles iff  max |λ| < 1
    dz/dt = −z + f(z)           settles iff  max Re λ < 1
    its Euler steps of dt       settle  iff  dt < min 2 Re(1 − λ) / |1 − λ|²      (and max Re λ < 1)

The eigenvalues are estimated by Arnoldi's method from products Jv alone.  All of it is plain arithmetic (no `eig`,
which neither GPU nor TPU has, and no LAPACK): it runs on every device, under `jit` and `vmap`; no gradient passes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Complex, Float, Inexact

from bptoolkit.counts import check_whole, fails, positive
from bptoolkit.fixed_point.sizes import norm
from bptoolkit.types import Key, PyTree, State

__all__ = ["Spectrum", "automatic_dt", "jacobian_penalty", "largest_dt", "monotone", "ritz"]
__all__ += ["singular_vector", "spectral_normalise", "symmetric"]

Map: TypeAlias = Callable[[Any, State], State]
Real: TypeAlias = Float[Array, ""] | float  # may be traced
Product: TypeAlias = Callable[[Float[Array, "n"]], Float[Array, "n"]]

TRIALS = 64  # step lengths that automatic_dt chooses from
SWEEPS = 30  # per eigenvalue, before the QR iteration gives up; two or three are usual
HIGHEST = lax.Precision.HIGHEST  # TF32 or bfloat16 products would cost the basis its orthogonality


class Spectrum(NamedTuple):
    """Ritz values: eigenvalues of J as seen from a Krylov space.

    values: θ, in no order; NaN where J is not finite.
    residuals: ‖Jv − θv‖ for the unit Ritz vector v of each.  If J is normal, an eigenvalue lies within that distance.
    """

    values: Complex[Array, "m"]
    residuals: Float[Array, "m"]


def ritz(f: Map, args: PyTree, z: State, *, size: int = 40, key: Key | None = None) -> Spectrum:
    """Eigenvalues of J = ∂f/∂z by `size` steps of Arnoldi's method from a random vector: one product Jv a step.

    The outermost eigenvalues are found first.  With `size` at least the number n of state values all are, to rounding;
    with fewer they come mostly from further in, and `residuals` says how far to trust each.  Limits: the eigenvalues
    of a strongly non-normal J (a feed-forward chain of k units) move by eps^(1/k) under rounding at any residual.

    Args:
        z: where to linearise; any pytree.  A complex number counts as two real ones, which adds the conjugates of the
            eigenvalues if f is holomorphic.
        size: Krylov vectors, at least 1; memory is size · n.
        key: for the start vector; `jax.random.key(0)` if left out.

    Reference: Saad (2011), Numerical Methods for Large Eigenvalue Problems, chapter 6.
    """
    return spectrum(*linearised(f, args, z), size, key)


def spectrum(product: Product, like: Float[Array, "n"], size: int, key: Key | None) -> Spectrum:
    """Ritz values of any linear map of vectors such as `like`."""
    check_whole(1, "Take 40; as many as there are state values is exact.", size=size)
    key = jax.random.key(0) if key is None else key
    hessenberg, rest = _arnoldi(product, like, min(size, like.size), key)
    triangle, last = _schur(hessenberg)
    vectors = _eigenvectors(triangle)
    reach = jnp.abs(jnp.matmul(last, vectors, precision=HIGHEST)) / jnp.linalg.norm(vectors, axis=0)
    rounding = float(jnp.finfo(like.dtype).eps) * jnp.linalg.norm(hessenberg)
    return Spectrum(jnp.diagonal(triangle), rest * reach + rounding)


def linearised(f: Map, args: PyTree, z: State) -> tuple[Product, Float[Array, "n"]]:
    """The product v ↦ Jv in real coordinates, float32 or wider, and the point z in them."""
    flat, back = coordinates(z)
    return jax.linearize(lambda v: coordinates(f(args, back(v)))[0], flat)[1], flat


def coordinates(z: State) -> tuple[Float[Array, "n"], Callable[[Float[Array, "n"]], State]]:
    """z as one real vector, and the way back."""
    leaves, tree = jax.tree.flatten(z)
    parts = [(x.real, x.imag) if jnp.iscomplexobj(x) else (jnp.asarray(x),) for x in leaves]
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(norm(z).dtype), parts))
    narrow = lambda v: jax.tree.map(lambda x, part: x.astype(part.dtype), unravel(v), parts)
    back = lambda v: tree.unflatten([lax.complex(*x) if len(x) == 2 else x[0] for x in narrow(v)])
    return flat, back


def _arnoldi(product: Product, like: Float[Array, "n"], size: int, key: Key) -> tuple[Float[Array, "m m"], Array]:
    """H = Q J Qᵀ on an orthonormal basis Q of a Krylov space, and the norm of what J leads out of it.

    Where the space is closed under J before it has `size` dimensions, it goes on from a fresh random vector.
    """
    draw = lambda key: jax.random.normal(key, like.shape, like.dtype)
    first, more = jax.random.split(key)

    def project(basis, w):
        h = jnp.matmul(basis, w, precision=HIGHEST)
        return w - jnp.matmul(h, basis, precision=HIGHEST), h

    def step(basis, inputs):
        k, key = inputs
        once, h = project(basis, lax.stop_gradient(product(basis[k])))
        twice, correction = project(basis, once)
        below = jnp.linalg.norm(twice)
        closed = below <= 0.7 * jnp.linalg.norm(once)  # Kahan: a second pass that takes much away leaves rounding only
        fresh = project(basis, project(basis, draw(key))[0])[0]
        basis = basis.at[k + 1].set(_unit(jnp.where(closed, fresh, twice)), mode="drop")
        return basis, (h + correction, jnp.where(closed, jnp.zeros_like(below), below))

    basis = jnp.zeros((size, like.size), like.dtype).at[0].set(_unit(draw(first)))
    _, (columns, below) = lax.scan(step, basis, (jnp.arange(size), jax.random.split(more, size)))
    return columns.T + jnp.diag(below[:-1], -1), below[-1]


def _unit(v: Inexact[Array, "n"]) -> Inexact[Array, "n"]:
    size = jnp.linalg.norm(v)
    return v / jnp.where(size > 0, size, jnp.ones_like(size)).astype(v.dtype)


@jax.jit  # compiled once for all maps
def _schur(h: Float[Array, "m m"]) -> tuple[Complex[Array, "m m"], Complex[Array, "m"]]:
    """T upper triangular with H = U T Uᴴ, U unitary, and the last row of U: shifted QR iteration.

    Reference: Golub & Van Loan (2013), Matrix Computations, section 7.5.
    """
    m, eps = len(h), float(jnp.finfo(h.dtype).eps)
    scale = jnp.linalg.norm(h)
    unit = h / jnp.where(scale > 0, scale, jnp.ones_like(scale))
    eye = jnp.eye(m, dtype=lax.complex(h, h).dtype)

    def deflate(t):
        below = jnp.diagonal(t, -1)
        kept = jnp.where(jnp.abs(below) > eps, below, jnp.zeros_like(below))
        active = jnp.where(kept != 0, jnp.arange(1, m), 0)
        return jnp.triu(t) + jnp.diag(kept, -1), jnp.max(active, initial=0)

    def sweep(state):
        t, last, p, count = state
        shift = jnp.where(count % 11 == 10, t[p, p] + t[p, p - 1], _wilkinson(t, p)) * eye
        table = lax.fori_loop(0, m - 1, _rotate, jnp.concatenate([t - shift, eye], axis=1))
        r, q = table[:, :m], table[:, m:].conj().T
        t, p = deflate(jnp.matmul(r, q, precision=HIGHEST) + shift)
        return t, jnp.matmul(last, q, precision=HIGHEST), p, count + 1

    going = lambda state: (state[2] > 0) & (state[3] < SWEEPS * m) & jnp.isfinite(scale)
    t, p = deflate(unit.astype(eye.dtype))
    t, last, p, _ = lax.while_loop(going, sweep, (t, eye[-1], p, jnp.int32(0)))
    failed = (p > 0) | ~jnp.isfinite(scale)
    return jnp.where(failed, jnp.full_like(t, jnp.nan), t * scale.astype(t.dtype)), last


def _wilkinson(t: Complex[Array, "m m"], p: Array) -> Complex[Array, ""]:
    """The eigenvalue of the 2 × 2 block that ends in row p which is nearer to t[p, p]."""
    half = (t[p - 1, p - 1] - t[p, p]) / 2
    product = t[p - 1, p] * t[p, p - 1]
    root = jnp.sqrt(half * half + product)
    far = jnp.where(jnp.abs(half + root) >= jnp.abs(half - root), half + root, half - root)
    return t[p, p] - jnp.where(far == 0, far, product / jnp.where(far == 0, jnp.ones_like(far), far))


def _rotate(k: Array, table: Complex[Array, "m w"]) -> Complex[Array, "m w"]:
    """Make table[k + 1, k] zero by a rotation of rows k and k + 1."""
    x, y = table[k], table[k + 1]
    c, s = _unit(jnp.stack([x[k], y[k]]))
    c = jnp.where((c == 0) & (s == 0), jnp.ones_like(c), c)
    return table.at[k].set(c.conj() * x + s.conj() * y).at[k + 1].set(c * y - s * x)


@jax.jit
def _eigenvectors(t: Complex[Array, "m m"]) -> Complex[Array, "m m"]:
    """Eigenvectors of a triangular matrix, in columns, by back substitution; each is scaled as it grows."""
    m, values, info = len(t), jnp.diagonal(t), jnp.finfo(t.dtype)
    smallest = jnp.maximum(float(info.eps) * jnp.linalg.norm(t), float(info.tiny))

    def row(i, x):
        j = m - 1 - i
        gap = t[j, j] - values
        gap = jnp.where(jnp.abs(gap) > smallest, gap, smallest.astype(t.dtype))
        solved = jnp.where(j < jnp.arange(m), -jnp.matmul(t[j], x, precision=HIGHEST) / gap, jnp.zeros_like(gap))
        x = x.at[j].set(solved).at[j, j].set(1)
        return x / jnp.maximum(1, jnp.max(jnp.abs(x), axis=0)).astype(t.dtype)

    return lax.fori_loop(0, m, row, jnp.zeros_like(t))


def largest_dt(eigenvalues: Complex[Array, "m"]) -> Float[Array, ""]:
    """The step below which Euler's steps settle, min 2 Re(1 − λ) / |1 − λ|²; 0 if some Re λ ≥ 1, so that none does.

    Args:
        eigenvalues: λ of J = ∂f/∂z, say `ritz(…).values`.
    """
    gap = 1 - eigenvalues
    square = jnp.maximum(jnp.square(gap.real) + jnp.square(gap.imag), float(jnp.finfo(gap.real.dtype).tiny))
    return jnp.maximum(jnp.min(2 * gap.real / square), 0)


def automatic_dt(
    f: Map, args: PyTree, z: State, *, safety: Real = 0.9, largest: Real = 1.0, size: int = 40, key: Key | None = None
) -> Float[Array, ""]:
    """The dt for `relaxation(dt)` that contracts fastest, max |1 − dt (1 − λ)| least, over the Ritz values of J at z.

    It stays below safety · `largest_dt`, for Ritz values lie further in than eigenvalues do, and below `largest`.
    Modes with Re λ ≥ 1 grow at any dt and have no say.  J is that of z: ask again from nearer by if it changes much.

    Args:
        f, args, z, size, key: as in `ritz`; the cost is `size` products Jv.
        safety: share of the stable range that may be used, in (0, 1).
        largest: upper bound, positive; 1 is plain iteration, above it slow modes are over-relaxed.

    Raises:
        ValueError: a safety outside (0, 1), a largest that is not positive.
    """
    if fails(lambda share: (share > 0) & (share < 1), safety):
        raise ValueError(f"safety must be in (0, 1), got {safety}. Take 0.9.")
    if fails(lambda dt: dt > 0, largest):
        raise ValueError(f"largest must be positive, got {largest}. Take 1, which is plain iteration.")
    values = ritz(f, args, z, size=size, key=key).values
    calm = jnp.where(values.real >= 1, jnp.zeros_like(values), values)  # λ = 0 bears any dt up to 2
    safety, largest = (jnp.asarray(number, calm.real.dtype) for number in (safety, largest))
    limit = jnp.minimum(safety * largest_dt(calm), largest)
    trials = limit * jnp.arange(TRIALS, 0, -1, dtype=limit.dtype) / TRIALS  # longest first, which wins a tie
    worst = jnp.max(jnp.abs(1 - trials[:, None].astype(calm.dtype) * (1 - calm)), axis=1)
    return trials[jnp.argmin(worst)]


def jacobian_penalty(f: Map, args: PyTree, z: State, key: Key, samples: int = 1) -> Float[Array, ""]:
    """‖J‖²_F / n by Hutchinson's estimate, the mean of ‖Jv‖² / n over random signs v; a penalty that keeps J small.

    Unbiased, and differentiable in args and in z.  Random signs vary less than the published Gaussian v.

    Args:
        f, args, z: map (args, z) -> z, its arguments, and where it is linearised; n state values.
        key: of the signs; a new one for each call.
        samples: products Jv, at least 1; the standard error falls as 1/√samples.

    Raises:
        ValueError: samples that are no whole number of at least 1.

    Reference: Bai, Koltun & Kolter (2021), ICML, "Stabilizing Equilibrium Models by Jacobian Regularization".
    """
    check_whole(1, "One is usual in training.", samples=samples)
    product, flat = linearised(f, args, z)
    signs = jax.random.rademacher(key, (samples, flat.size), flat.dtype)
    return jnp.mean(jnp.square(jax.vmap(product)(signs)))


def spectral_normalise(
    w: Float[Array, "a b"], bound: Real, *, steps: int = 50, start: Float[Array, "b"] | None = None
) -> Float[Array, "a b"]:
    """w · min(1, bound/σ), where σ = uᵀ w v estimates ‖w‖₂ by power iteration; a smaller w is left as it is.

    u and v count as constants, as published, which gives the derivative ∂σ/∂w = u vᵀ exactly once they have settled.
    σ comes from below, so the norm may pass the bound: by about ln(b)/(4 · steps) of it at worst, if the spectrum has
    no gap.  In training, carry v = singular_vector(w, steps=1, start=v) and call this with steps=0, start=v.

    Args:
        bound: positive; below 1/max |g′| a rate network settles by plain iteration, from any state.
        steps, start: as in `singular_vector`.

    Raises:
        ValueError: a bound that is not positive and finite.

    Reference: Miyato et al. (2018), ICLR, "Spectral Normalization for Generative Adversarial Networks".
    """
    if fails(positive, bound):
        raise ValueError(
            f"bound must be positive and finite, got {bound}. Below 1, a step with slopes up to 1 contracts."
        )
    v = singular_vector(w, steps=steps, start=start)
    wide, limit = w.astype(v.dtype), jnp.asarray(bound, v.dtype)
    u = _unit(lax.stop_gradient(wide) @ v)
    return w * (limit / jnp.maximum(u @ wide @ v, limit)).astype(w.dtype)


def singular_vector(
    w: Float[Array, "a b"], *, steps: int = 50, start: Float[Array, "b"] | None = None
) -> Float[Array, "b"]:
    """The leading right singular vector of w, by `steps` power iterations on wᵀw; carries no gradient.

    `start` is that of a similar w, or a fixed random vector if left out; with no steps it is returned, of length 1.
    """
    w = lax.stop_gradient(w).astype(norm(w).dtype)  # float32 or wider
    start = jax.random.normal(jax.random.key(0), w.shape[1:], w.dtype) if start is None else lax.stop_gradient(start)
    return lax.fori_loop(0, steps, lambda _, v: _unit((w @ v) @ w), _unit(start))


def monotone(a: Float[Array, "k n"], b: Float[Array, "n n"], m: Real) -> Float[Array, "n n"]:
    """W = (1 − m) I − AᵀA + B − Bᵀ, with which I − W ⪰ m I.

    For m > 0 and any g with slopes in [0, 1] (relu, tanh, …), z = g(W z + d) then has one fixed point, whatever
    A and B, at which dz/dt = −z + g(W z + d) is stable; plain iteration may not be.  The same holds for Wᵀ, so z @ w
    does as well.

    Args:
        a, b: A, of any number of rows, and B.
        m: how strongly monotone, positive; eigenvalues of W keep 1 − m as the bound of their real parts.

    Raises:
        ValueError: an m that is not positive and finite.

    Reference: Winston & Kolter (2020), NeurIPS, "Monotone operator equilibrium networks".
    """
    if fails(positive, m):
        raise ValueError(f"m must be positive and finite, got {m}. The published networks take 1, or less.")
    eye = jnp.eye(len(b), dtype=b.dtype)
    return (1 - jnp.asarray(m, b.dtype)) * eye - a.T @ a + b - b.T


def symmetric(w: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """(w + wᵀ)/2 without self-connections: with an increasing g, dz/dt = −z + g(W z + d) has an energy and settles.

    Plain iteration may still fall into a cycle of two.  Reference: Hopfield (1984), PNAS 81.
    """
    return (w + w.T) / 2 * (1 - jnp.eye(w.shape[0], dtype=w.dtype))
