"""The monotone network z = relu(W z + U x + b), W = (1 − m) I − AᵀA + B − Bᵀ: one fixed point, whatever A and B are.

I − W has the symmetric part m I + AᵀA, so W + Wᵀ ≤ 2 (1 − m) I for all weights, and training cannot undo it.
Reference: Winston & Kolter (2020), NeurIPS, "Monotone operator equilibrium networks".
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bptoolkit.counts import fails, positive
from bptoolkit.fixed_point.splitting import Resolvent
from bptoolkit.fixed_point.stability import monotone
from bptoolkit.models.activations import relu
from bptoolkit.models.mlp import check_sizes, dense, uniform_fan_in
from bptoolkit.types import Cell, Key, Params

__all__ = ["inverse", "monotone_cell"]

BLOCK = 32  # rows that are eliminated one by one


def monotone_cell(inputs: int, units: int, outputs: int, *, m: float = 1.0, alpha: float | None = None) -> Cell:
    """A rate cell of relu units with exactly one fixed point, for every value of its parameters.

    Plain iteration is sure to contract only while ‖W‖ < 1.  `peaceman_rachford()` settles always, `forward_backward`
    and `relaxation` where their steps are short enough.  The adjoint is stable too: ∂f/∂z = diag(g′) W has Re λ < 1, so
    `almeida_pineda(relaxation(dt))` converges for a small dt, and a Krylov or dense adjoint needs no dt.

    `resolvent(params, current, alpha)` takes the current d = `drive(params, x)`, as `respond` does, and returns a
    `fixed_point.Resolvent`.  Its inverse depends on params alone: under `vmap` over x it is made once for the batch.

    Parameters: {"a": (units, units), "s": (units, units), "u": (inputs, units), "b": (units,), "v": (units, outputs),
    "c": (outputs,)}, with a = A and s = Bᵀ, all drawn as in `mlp`.

    Args:
        inputs, units, outputs: their numbers; the input is flattened.
        m: how strongly monotone, positive; eigenvalues of W keep 1 − m as the bound of their real parts.
        alpha: step length α of the resolvent where none is given there, positive.  If left out 1/√(m L), with a bound
            on L = ‖I − W‖ that follows the weights: a fixed α is slow where training has made W many times larger.

    Raises:
        ValueError: a size below one; m or alpha that is not positive and finite.
    """
    check_sizes("monotone_cell", (inputs, units, outputs))
    for name, number in {"m": m, "alpha": alpha}.items():
        if number is not None and fails(positive, number):
            raise ValueError(f"{name} must be positive and finite, got {number}. Leave it out to begin with.")

    def init(key: Key) -> Params:
        a, s, u, b, v, c = jax.random.split(key, 6)
        return {
            "a": uniform_fan_in(a, (units, units), units),
            "s": uniform_fan_in(s, (units, units), units),
            "u": uniform_fan_in(u, (inputs, units), inputs),
            "b": uniform_fan_in(b, (units,), inputs),
            "v": uniform_fan_in(v, (units, outputs), units),
            "c": uniform_fan_in(c, (outputs,), units),
        }

    def resolvent(params: Params, current: Float[Array, "units"], alpha=alpha) -> Resolvent:
        w = recurrent(params)
        eye = jnp.eye(units, dtype=w.dtype)
        step = _step_length(eye - w, m) if alpha is None else jnp.asarray(alpha, w.dtype)
        v = inverse(eye + step * (eye - w))
        return Resolvent(lambda z: z @ w + current, lambda u: (u + step * current) @ v)

    # As z @ w, so s is Bᵀ.  It does not depend on z: XLA takes it out of the loop.
    recurrent = lambda params: monotone(params["a"], params["s"], m)
    drive = lambda params, x: dense({"w": params["u"], "b": params["b"]}, x)
    respond = lambda params, current, z: relu(z @ recurrent(params) + current)
    step = lambda params, x, z: respond(params, drive(params, x), z)
    readout = lambda params, z: dense({"w": params["v"], "b": params["c"]}, z)
    state = jax.ShapeDtypeStruct((units,), jnp.result_type(float))
    return Cell(init, step, readout, state, resolvent=resolvent, drive=drive, respond=respond)


def _step_length(a: Float[Array, "n n"], m: float) -> Float[Array, ""]:
    """1/√(m L), L = √(‖a‖₁ ‖a‖_∞) ≥ ‖a‖₂.  No gradient: where the states settle does not depend on it."""
    size = lax.stop_gradient(jnp.abs(a))
    bound = jnp.sqrt(jnp.max(jnp.sum(size, axis=0)) * jnp.max(jnp.sum(size, axis=1)))
    return 1 / jnp.sqrt(jnp.asarray(m, a.dtype) * bound)


@jax.custom_jvp
def inverse(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """a⁻¹ of a matrix whose symmetric part is positive definite, by halves: S = D − C P B with P = (top left)⁻¹.

    P and S have positive definite symmetric parts again, so nothing is ever exchanged, and almost all the work is in
    products.  Plain arithmetic, for the reason that `solvers._eliminate` gives: under `vmap` over seeds LAPACK's
    batched routines can block each other where the seeds lie on several CPU devices.

    Reference: Golub & Van Loan (1979), Linear Algebra and its Applications 28, on elimination without pivots.
    """
    n, k = len(a), len(a) // 2
    if n <= BLOCK:
        return _gauss_jordan(a)
    b, c, d = a[:k, k:], a[k:, :k], a[k:, k:]
    p = inverse(a[:k, :k])
    down, up = c @ p, p @ b
    s = inverse(d - down @ b)
    return jnp.block([[p + up @ s @ down, -up @ s], [-s @ down, s]])


@inverse.defjvp
def _(primals, tangents):
    """d(a⁻¹) = −a⁻¹ da a⁻¹."""
    value = inverse(*primals)
    return value, -value @ tangents[0] @ value


def _gauss_jordan(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """a⁻¹ in place: row k is divided by its pivot, and its multiples are taken from all others."""

    def eliminate(k, a):
        row = a[k].at[k].set(1) / a[k, k]
        return (a.at[:, k].set(0) - a[:, k, None] * row).at[k].set(row)

    return lax.fori_loop(0, len(a), eliminate, a)
