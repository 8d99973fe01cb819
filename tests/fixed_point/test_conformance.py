"""Every solver and every exact adjoint under every transformation of JAX: one gradient, that of a dense solve.

Pairwise: each solver meets each adjoint, in one precision or another, and both meet each transformation.
"""

import itertools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from bptoolkit.fixed_point import Status, Stop, adjoints, implicit, quasi_newton
from tests.fixed_point import methods
from tests.fixed_point.methods import SOLVERS, paired

UNITS = 9  # one more than are eliminated, so that "exact" and "dense" go the way of larger states
TIGHT = Stop(rtol=1e-12)
NARROW = Stop(rtol=1e-6)  # what float32 can honour on this map
ADJOINTS, IN_FLOAT32 = methods.adjoints(TIGHT), methods.adjoints(NARROW)
BIASED = {**{n: a for n, a in adjoints.EXAMPLES.items() if n not in adjoints.EXACT}, **quasi_newton.ADJOINTS}
WEIGHTS = jnp.arange(1.0, UNITS + 1)
F = lambda a, z: jnp.tanh(a[0] @ z + a[1])


def given(dtype=float):
    """Symmetric weights, for methods that need real spectra, and three rows of currents."""
    w_key, b_key = jax.random.split(jax.random.key(7))
    w = jax.random.normal(w_key, (UNITS, UNITS)) * 0.3
    return ((w + w.T) / 2).astype(dtype), jax.random.normal(b_key, (3, UNITS)).astype(dtype)


def settled(w, row):
    """500 plain steps, in numpy."""
    z = np.zeros(UNITS)
    for _ in range(500):
        z = np.tanh(w @ z + row)
    return z


def expected(w, b):
    """∂/∂W of Σ weights · z², summed over the rows of b, in numpy."""
    w, b, weights = np.asarray(w, float), np.asarray(b, float), np.asarray(WEIGHTS, float)
    total = np.zeros_like(w)
    for row in b:
        z = settled(w, row)
        slope = 1 - z**2
        total += np.outer(slope * np.linalg.solve((np.eye(UNITS) - slope[:, None] * w).T, 2 * weights * z), z)
    return total


def loss(relax, w, b):
    return jnp.sum(WEIGHTS.astype(w.dtype) * relax(F, (w, b), jnp.zeros(UNITS, w.dtype)).value ** 2)


def summed(relax, w, b):
    return jnp.sum(jax.vmap(lambda row: loss(relax, w, row))(b))


def plainly(relax, w, b):
    """The gradient of a batch, under `jit` alone."""
    return jax.jit(jax.grad(lambda w: summed(relax, w, b)))(w)


def by_nested_vmap(relax, w, b):
    """Each row with each of two equal sets of weights."""
    rows = jax.vmap(jax.grad(lambda w, row: loss(relax, w, row)), (None, 0))
    return jnp.sum(jax.jit(jax.vmap(rows, (0, None)))(jnp.stack([w, w]), b), axis=(0, 1)) / 2


def by_scan(relax, w, b):
    total = lambda w: lax.scan(lambda s, row: (s + loss(relax, w, row), None), jnp.zeros((), w.dtype), b)[0]
    return jax.jit(jax.grad(total))(w)


def by_remat(relax, w, b):
    return jax.jit(jax.grad(jax.checkpoint(lambda w: summed(relax, w, b))))(w)


def by_capture(relax, w, b):
    """f closes over the weights that are differentiated."""
    one = lambda w, row: relax(lambda a, z: F((w, a), z), row, jnp.zeros(UNITS, w.dtype)).value
    value = lambda w: jnp.sum(WEIGHTS.astype(w.dtype) * jax.vmap(lambda row: one(w, row))(b) ** 2)
    return jax.jit(jax.grad(value))(w)


def by_tree(relax, w, b):
    """The state in two pieces."""

    def halves(a, z):
        new = F(a, jnp.concatenate([z["low"], z["high"]]))
        return {"low": new[:3], "high": new[3:]}

    def value(w, row):
        z = relax(halves, (w, row), {"low": jnp.zeros(3, w.dtype), "high": jnp.zeros(UNITS - 3, w.dtype)}).value
        return jnp.sum(WEIGHTS.astype(w.dtype) * jnp.concatenate([z["low"], z["high"]]) ** 2)

    return jax.jit(jax.grad(lambda w: jnp.sum(jax.vmap(lambda row: value(w, row))(b))))(w)


def by_forward_mode(relax, w, b):
    return jax.jit(jax.jacfwd(lambda w: summed(relax, w, b)))(w)


def by_shard_map(relax, w, b):
    """One device is enough to trace all of it."""
    mesh, whole = Mesh(np.array(jax.devices()[:1]), ("rows",)), PartitionSpec()
    part = lambda w, b: lax.psum(jax.grad(lambda w: summed(relax, w, b))(w), "rows")
    spread = jax.shard_map(part, mesh=mesh, in_specs=(whole, PartitionSpec("rows")), out_specs=whole, check_vma=False)
    return jax.jit(spread)(w, b)


# Each holds `jit`, and `vmap` or a loop over rows: neither is a case of its own.
TRANSFORMED: dict[str, Callable] = {
    name.removeprefix("by_"): function for name, function in sorted(globals().items()) if name.startswith("by_")
}


CASES = [(*pair, by) for shift, by in enumerate(TRANSFORMED) for pair in paired(SOLVERS, ADJOINTS, shift)]
FLOAT32, BFLOAT16 = (paired(SOLVERS, ADJOINTS, len(TRANSFORMED) + shift) for shift in range(2))


def test_every_two_meet():
    met = [(*pair, "plainly") for pair in FLOAT32 + BFLOAT16] + CASES
    meet = lambda i, j, left, right: {(case[i], case[j]) for case in met} >= set(itertools.product(left, right))
    assert meet(0, 1, SOLVERS, ADJOINTS)
    assert meet(0, 2, SOLVERS, TRANSFORMED)
    assert meet(1, 2, ADJOINTS, TRANSFORMED)


@pytest.mark.parametrize(("solver", "adjoint", "transformed"), CASES)
def test_one_gradient(solver, adjoint, transformed):
    w, b = given()
    gradient = TRANSFORMED[transformed](implicit(SOLVERS[solver], ADJOINTS[adjoint], TIGHT), w, b)
    chex.assert_trees_all_close(gradient, expected(w, b), atol=1e-10)


@pytest.mark.parametrize(("solver", "adjoint"), FLOAT32)
def test_one_gradient_in_float32(solver, adjoint):
    w, b = given(jnp.float32)
    gradient = plainly(implicit(SOLVERS[solver], IN_FLOAT32[adjoint], NARROW), w, b)
    assert gradient.dtype == jnp.float32
    right = expected(w, b)
    assert near(gradient, right, 1e-5)


@pytest.mark.parametrize(("solver", "adjoint"), BFLOAT16)
def test_one_value_and_gradient_in_bfloat16(solver, adjoint):
    """ρ is 0.3, so that little amplifies what bfloat16 may leave: 5e-2 of λ, and of z, which enters twice."""
    w, b = given(jnp.bfloat16)
    w = w * jnp.bfloat16(0.4)
    relax = implicit(SOLVERS[solver], methods.adjoints(Stop())[adjoint])

    def narrow(w, row):
        solution = relax(F, (w, row), jnp.zeros(UNITS, w.dtype))
        return jnp.sum(WEIGHTS.astype(w.dtype) * solution.value**2), solution

    gradient, low = jax.jit(jax.grad(narrow, has_aux=True))(w, b[0])
    assert (low.value.dtype, low.residual.dtype, gradient.dtype) == (jnp.bfloat16, jnp.float32, jnp.bfloat16)
    assert low.status == Status.CONVERGED
    assert near(gradient, expected(w, b[:1]), 0.15)


def near(found, right, share):
    return np.linalg.norm(np.asarray(found, float) - right) <= share * np.linalg.norm(right)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "default"])
def test_float16_states_settle_with_single_precision_residuals(solver):
    w, b = given()
    args = w.astype(jnp.float16), b[0].astype(jnp.float16)
    low = jax.jit(lambda args: implicit(SOLVERS[solver])(F, args, jnp.zeros(UNITS, jnp.float16)))(args)
    assert (low.value.dtype, low.residual.dtype) == (jnp.float16, jnp.float32)
    assert low.status == Status.CONVERGED
    assert near(low.value, settled(np.asarray(w), np.asarray(b[0])), 0.1)


@pytest.mark.parametrize("name", BIASED)
def test_a_biased_adjoint_says_so_by_its_type_and_is_biased(name):
    assert isinstance(BIASED[name], adjoints.Biased)
    w, b = given()
    gradient = plainly(implicit(quasi_newton.broyden(), BIASED[name], TIGHT), w, b)
    right = expected(w, b)
    error = np.linalg.norm(np.asarray(gradient) - right) / np.linalg.norm(right)
    assert 1e-9 < error < 0.9


@pytest.mark.parametrize("name", ADJOINTS)
def test_an_exact_adjoint_does_not_call_itself_biased(name):
    assert not isinstance(ADJOINTS[name], adjoints.Biased)
