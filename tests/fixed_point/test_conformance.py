"""Every solver and every exact adjoint under every transformation of JAX: one gradient, that of a dense solve.

Pairwise: each solver meets each transformation, each adjoint too, with the third taken in turn.
"""

from collections.abc import Callable

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from bptoolkit.fixed_point import (
    Status,
    Stop,
    adjoints,
    almeida_pineda,
    bicgstab,
    cg_normal,
    chebyshev,
    dense,
    exact,
    gmres,
    implicit,
    krylov,
    newton,
    quasi_newton,
    solvers,
)

TIGHT = Stop(rtol=1e-12)
SOLVERS = {**solvers.EXAMPLES, **quasi_newton.EXAMPLES, **newton.EXAMPLES, "chebyshev": chebyshev(), "default": None}
ADJOINTS = {
    **{f"almeida_pineda({name})": almeida_pineda(s, TIGHT) for name, s in SOLVERS.items() if name != "newton_krylov"},
    "bicgstab": bicgstab(TIGHT),
    "cg_normal": cg_normal(TIGHT),
    "dense": dense(),
    "exact": exact(TIGHT),
    "gmres": gmres(stop=TIGHT),
}
BIASED = {**{n: a for n, a in adjoints.EXAMPLES.items() if n not in adjoints.EXACT}, **quasi_newton.ADJOINTS}
WEIGHTS = jnp.arange(1.0, 9.0)
F = lambda a, z: jnp.tanh(a[0] @ z + a[1])


def given(dtype=float):
    """Symmetric weights, for methods that need real spectra, and three rows of currents."""
    w_key, b_key = jax.random.split(jax.random.key(7))
    w = jax.random.normal(w_key, (8, 8)) * 0.3
    return ((w + w.T) / 2).astype(dtype), jax.random.normal(b_key, (3, 8)).astype(dtype)


def expected(w, b):
    """∂/∂W of Σ weights · z², summed over the rows of b, in numpy."""
    w, b, weights = np.asarray(w, float), np.asarray(b, float), np.asarray(WEIGHTS, float)
    total = np.zeros_like(w)
    for row in b:
        z = np.zeros(8)
        for _ in range(500):
            z = np.tanh(w @ z + row)
        slope = 1 - z**2
        total += np.outer(slope * np.linalg.solve((np.eye(8) - slope[:, None] * w).T, 2 * weights * z), z)
    return total


def loss(relax, w, b):
    return jnp.sum(WEIGHTS.astype(w.dtype) * relax(F, (w, b), jnp.zeros(8, w.dtype)).value ** 2)


def summed(relax, w, b):
    return jnp.sum(jax.vmap(lambda row: loss(relax, w, row))(b))


def by_jit(relax, w, b):
    return jax.jit(jax.grad(lambda w: loss(relax, w, b[0]) + loss(relax, w, b[1]) + loss(relax, w, b[2])))(w)


def by_grad_of_vmap(relax, w, b):
    return jax.jit(jax.grad(lambda w: summed(relax, w, b)))(w)


def by_vmap_of_grad(relax, w, b):
    return jnp.sum(jax.jit(jax.vmap(jax.grad(lambda w, row: loss(relax, w, row)), (None, 0)))(w, b), axis=0)


def by_vmap_of_weights_too(relax, w, b):
    many = jnp.broadcast_to(w, (3, 8, 8))
    return jnp.sum(jax.jit(jax.vmap(jax.grad(lambda w, row: loss(relax, w, row))))(many, b), axis=0)


def by_scan(relax, w, b):
    total = lambda w: lax.scan(lambda s, row: (s + loss(relax, w, row), None), jnp.zeros((), w.dtype), b)[0]
    return jax.jit(jax.grad(total))(w)


def by_remat(relax, w, b):
    return jax.jit(jax.grad(jax.checkpoint(lambda w: summed(relax, w, b))))(w)


def by_capture(relax, w, b):
    """f closes over the weights that are differentiated."""
    one = lambda w, row: relax(lambda a, z: F((w, a), z), row, jnp.zeros(8, w.dtype)).value
    value = lambda w: jnp.sum(WEIGHTS.astype(w.dtype) * jax.vmap(lambda row: one(w, row))(b) ** 2)
    return jax.jit(jax.grad(value))(w)


def by_tree(relax, w, b):
    """The state in two pieces."""

    def halves(a, z):
        new = F(a, jnp.concatenate([z["low"], z["high"]]))
        return {"low": new[:3], "high": new[3:]}

    def value(w, row):
        z = relax(halves, (w, row), {"low": jnp.zeros(3, w.dtype), "high": jnp.zeros(5, w.dtype)}).value
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


TRANSFORMED: dict[str, Callable] = {
    name.removeprefix("by_"): function for name, function in sorted(globals().items()) if name.startswith("by_")
}


def pairs():
    """(solver, adjoint, transformation): all pairs of a solver or adjoint with a transformation."""
    s, a = list(SOLVERS), list(ADJOINTS)
    for j, transformed in enumerate(TRANSFORMED):
        yield from ((name, a[(i + j) % len(a)], transformed) for i, name in enumerate(s))
        yield from ((s[(i + j) % len(s)], name, transformed) for i, name in enumerate(a))


@pytest.mark.parametrize(("solver", "adjoint", "transformed"), sorted(set(pairs())))
def test_one_gradient(solver, adjoint, transformed):
    w, b = given()
    gradient = TRANSFORMED[transformed](implicit(SOLVERS[solver], ADJOINTS[adjoint], TIGHT), w, b)
    chex.assert_trees_all_close(gradient, expected(w, b), atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_comes_within_its_default_tolerance(solver):
    w, b = given(jnp.float32)
    gradient = by_grad_of_vmap(implicit(SOLVERS[solver]), w, b)
    assert gradient.dtype == jnp.float32
    right = expected(w, b)
    assert np.linalg.norm(np.asarray(gradient) - right) <= 1e-3 * np.linalg.norm(right)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "default"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_states_settle_with_single_precision_residuals(solver, dtype):
    w, b = given()
    low = implicit(SOLVERS[solver])(F, (w.astype(dtype), b[0].astype(dtype)), jnp.zeros(8, dtype))
    right = implicit(stop=TIGHT)(F, (w, b[0]), jnp.zeros(8)).value
    assert low.value.dtype == dtype
    assert low.residual.dtype == jnp.float32
    assert low.status == Status.CONVERGED
    assert jnp.linalg.norm(low.value.astype(float) - right) < 0.1 * jnp.linalg.norm(right)


@pytest.mark.parametrize("name", BIASED)
def test_a_biased_adjoint_says_so_by_its_type_and_is_biased(name):
    assert isinstance(BIASED[name], adjoints.Biased)
    w, b = given()
    gradient = by_grad_of_vmap(implicit(quasi_newton.broyden(), BIASED[name], TIGHT), w, b)
    right = expected(w, b)
    error = np.linalg.norm(np.asarray(gradient) - right) / np.linalg.norm(right)
    assert 1e-9 < error < 0.9


@pytest.mark.parametrize("name", ADJOINTS)
def test_an_exact_adjoint_does_not_call_itself_biased(name):
    assert not isinstance(ADJOINTS[name], adjoints.Biased)


@pytest.mark.parametrize("name", [*SOLVERS, *krylov.EXAMPLES])
def test_it_lowers_for_gpu_and_tpu(name):
    """Value and gradient of a batch, by jax.export, without such a device."""
    solver, adjoint = SOLVERS.get(name), krylov.EXAMPLES.get(name)
    program = jax.jit(jax.grad(lambda w, b: summed(implicit(solver, adjoint), w, b)))
    exported = jax.export.export(program, platforms=["cpu", "cuda", "tpu"])(*given(jnp.float32))
    assert exported.platforms == ("cpu", "cuda", "tpu")
