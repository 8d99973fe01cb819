"""Euler steps that find their own length settle what is stable in continuous time."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import Status, Stop, almeida_pineda, implicit, picard, relaxation, solve, unrolled
from bptoolkit.fixed_point.stability import automatic_dt

UNITS = 20


def symmetric(low, high, seed):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(UNITS, UNITS)))[0]
    return q @ np.diag(np.linspace(low, high, UNITS)) @ q.T


def rotating(real, imaginary, seed):
    """Eigenvalues re ± i·im, between the bounds given."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(UNITS, UNITS)))[0]
    blocks = np.zeros((UNITS, UNITS))
    pairs = zip(np.linspace(*real, UNITS // 2), np.linspace(*imaginary, UNITS // 2), strict=True)
    for i, (a, b) in enumerate(pairs):
        blocks[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[a, b], [-b, a]]
    return q @ blocks @ q.T


FAMILIES = {
    "symmetric -3 to 0.9": lambda seed: symmetric(-3, 0.9, seed),
    "symmetric -30 to 0.5": lambda seed: symmetric(-30, 0.5, seed),
    "rotations about 0.5 by 2": lambda seed: rotating((0.5, 0.5), (2, 2), seed),
    "rotations about -2 to 0.5 by 0 to 4": lambda seed: rotating((0.5, -2), (0, 4), seed),
}


def settled(solver, family, rtol, dtype=jnp.float64):
    """Ten maps z ↦ Mz + c, settled as one batch, and their fixed points by a direct solve."""
    m = jnp.array(np.stack([FAMILIES[family](seed) for seed in range(10)]))
    c = jax.random.normal(jax.random.key(0), (10, UNITS))
    one = lambda m, c: solve(lambda z: m @ z + c, jnp.zeros(UNITS, dtype), solver, Stop(rtol, max_steps=2000))
    return jax.jit(jax.vmap(one))(m.astype(dtype), c.astype(dtype)), jnp.linalg.solve(jnp.eye(UNITS) - m, c[..., None])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_stable_in_continuous_time_settles_without_being_told_dt(family):
    """To three tolerances of the direct solve, where plain iteration diverges."""
    solution, exact = settled(relaxation(), family, 1e-6)
    chex.assert_trees_all_equal(solution.status, jnp.full(10, int(Status.CONVERGED), jnp.int32))
    error = jnp.linalg.norm(solution.value.astype(float) - exact[..., 0], axis=1) / jnp.linalg.norm(
        exact[..., 0], axis=1
    )
    assert error.max() <= 3e-6
    plain, _ = settled(picard(), family, 1e-6)
    chex.assert_trees_all_equal(plain.status, jnp.full(10, int(Status.DIVERGED), jnp.int32))


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_settles_too(family):
    solution, exact = settled(relaxation(), family, 1e-4, jnp.float32)
    assert solution.value.dtype == solution.memory.dt.dtype == jnp.float32
    chex.assert_trees_all_equal(solution.status, jnp.full(10, int(Status.CONVERGED), jnp.int32))
    error = jnp.linalg.norm(solution.value.astype(float) - exact[..., 0], axis=1) / jnp.linalg.norm(
        exact[..., 0], axis=1
    )
    assert error.max() <= 3e-4


@pytest.mark.parametrize("eigenvalue", [-4.0, -5.0, -30.0])
def test_a_single_eigenvalue_is_met_at_the_second_step(eigenvalue):
    """The first shows it, and dt = 1/(1 − λ) then lands on the fixed point, which is 1/(1 − λ) too."""
    solution = solve(lambda z: eigenvalue * z + jnp.ones(3), jnp.zeros(3), relaxation(), Stop(max_steps=2))
    chex.assert_trees_all_close(solution.memory.dt, 1 / (1 - eigenvalue), rtol=1e-12)
    chex.assert_trees_all_close(solution.value, jnp.full(3, 1 / (1 - eigenvalue)), rtol=1e-12)


def test_the_length_found_is_that_of_the_spectrum_where_there_is_one_rotation():
    """|1 − dt (1 − λ)| is least at dt = Re(1 − λ)/|1 − λ|², which `automatic_dt` finds from Ritz values."""
    m = jnp.array([[0.5, 1.5], [-1.5, 0.5]])
    f = lambda a, z: a @ z + jnp.ones(2)
    solution = solve(lambda z: f(m, z), jnp.zeros(2), relaxation())
    chex.assert_trees_all_close(solution.memory.dt, 0.5 / 2.5, rtol=1e-6)
    chex.assert_trees_all_close(solution.memory.dt, automatic_dt(f, m, jnp.ones(2)), rtol=0.02)


def test_the_length_found_never_passes_one():
    """1 − λ is 1/50, so that dt = 50 would end it at once: it stays plain iteration."""
    assert solve(lambda z: 0.98 * z + 1, jnp.zeros(3), relaxation()).memory.dt == 1


def test_it_takes_fewer_steps_than_a_length_that_is_safe_for_all():
    """1 − λ up to 31 needs dt < 2/31 = 0.0645."""
    found, _ = settled(relaxation(), "symmetric -30 to 0.5", 1e-6)
    given, _ = settled(relaxation(0.06), "symmetric -30 to 0.5", 1e-6)
    assert found.steps.max() < given.steps.min()


def test_what_is_unstable_in_continuous_time_is_told():
    """λ = 1.5 has no step length."""
    f = lambda z: jnp.array([1.5, -0.5]) * z + 1.0
    assert solve(f, jnp.zeros(2), relaxation(), Stop(max_steps=1000)).status == Status.DIVERGED


def test_a_tree_of_real_and_complex_leaves_settles():
    f = lambda z: {"a": -3.0 * z["a"] + 1.0, "b": ((-2 + 1j) * z["b"]).astype(jnp.complex64) + jnp.complex64(1j)}
    start = {"a": jnp.zeros(3), "b": jnp.zeros(2, jnp.complex64)}
    solution = solve(f, start, relaxation())
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value["a"], jnp.full(3, 0.25), rtol=1e-4)
    chex.assert_trees_all_close(solution.value["b"], jnp.full(2, 1j / (3 - 1j), jnp.complex64), rtol=1e-4)


def test_it_is_no_matter_of_scale():
    """Residuals a thousand times as large make the same steps."""
    m = jnp.array(symmetric(-3, 0.9, 0))
    one, two = (solve(lambda z, s=s: m @ z + s, jnp.zeros(UNITS), relaxation()) for s in (1.0, 1024.0))
    assert one.steps == two.steps
    chex.assert_trees_all_close(1024 * one.value, two.value, rtol=1e-9)


def test_gradients_where_plain_iteration_diverges():
    """Backward by the same steps, and through them, against a direct solve: ∂Σ w z/∂b = (I − Mᵀ)⁻¹ w."""
    m, weights = jnp.array(symmetric(-3, 0.5, 1)), jnp.arange(float(UNITS))
    expected = jnp.linalg.solve(jnp.eye(UNITS) - m.T, weights)
    tight = Stop(rtol=1e-11)
    for relax in (implicit(relaxation(), almeida_pineda(relaxation(), tight), tight), unrolled(300, relaxation())):
        loss = lambda b, relax=relax: weights @ relax(lambda b, z: m @ z + b, b, jnp.zeros(UNITS)).value
        chex.assert_trees_all_close(jax.jit(jax.grad(loss))(jnp.ones(UNITS)), expected, rtol=1e-8)
