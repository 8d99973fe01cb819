"""Krylov adjoints against dense solves, their laws, and how they fail; Newton's method on top of them."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import (
    Status,
    Stop,
    bicgstab,
    cg_normal,
    dense,
    gmres,
    implicit,
    krylov,
    neumann,
    newton_krylov,
    picard,
    solve,
)

TIGHT = Stop(rtol=1e-12)
METHODS = {"gmres": gmres, "bicgstab": bicgstab, "cg_normal": cg_normal}


def system(rho, n=24, seed=2, kind="random", dtype=float):
    """A matrix of spectral radius ρ, a right side, and λ by elimination."""
    a_key, g_key = jax.random.split(jax.random.key(seed))
    a = jax.random.normal(a_key, (n, n), dtype)
    a = {"random": a, "symmetric": (a + a.T) / 2, "rotation": (a - a.T) / 2}[kind]
    a = a * (rho / jnp.abs(jnp.linalg.eigvals(a)).max()).astype(a.dtype)
    g = jax.random.normal(g_key, (n,), dtype)
    return a, g, jnp.linalg.solve(jnp.eye(n, dtype=a.dtype) - a, g)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["random", "symmetric", "rotation"])
@pytest.mark.parametrize("rho", [0.5, 0.99])
def test_it_solves_what_elimination_solves(name, kind, rho):
    a, g, exact = system(rho, kind=kind)
    solution = METHODS[name](stop=TIGHT)(lambda v: a @ v, g)
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_it_solves_complex_systems(name):
    a, g, exact = system(0.9, n=12, dtype=complex)
    chex.assert_trees_all_close(METHODS[name](stop=TIGHT)(lambda v: a @ v, g).value, exact, atol=1e-9)


@pytest.mark.parametrize("name", ["gmres", "cg_normal"])
def test_it_needs_no_contraction(name):
    """ρ = 3, where plain relaxation diverges."""
    a, g, exact = system(3.0)
    assert METHODS[name](stop=Stop(rtol=1e-10)).__call__(lambda v: a @ v, g).status == Status.CONVERGED
    method = gmres(40, TIGHT) if name == "gmres" else cg_normal(TIGHT)
    chex.assert_trees_all_close(method(lambda v: a @ v, g).value, exact, atol=1e-8)


def test_gmres_ends_in_n_products_with_the_smallest_residual_of_the_krylov_space():
    """The oracle is least squares over g, Ag, …; where r ⟂ (I − A) r plain conjugate residuals would break down."""
    quarter_turn = jnp.eye(2) - jnp.array([[0.0, -1.0], [1.0, 0.0]])  # I − A turns by 90°
    for a, g in [(quarter_turn, jnp.array([1.0, 0.0])), system(0.99, n=8)[:2]]:
        n = len(g)
        m = jnp.eye(n) - a
        residuals = []
        for k in range(1, n + 1):
            space = jnp.stack([jnp.linalg.matrix_power(m, i) @ g for i in range(1, k + 1)], axis=1)
            best = jnp.linalg.norm(g - space @ jnp.linalg.lstsq(space, g)[0])
            solution = gmres(stop=Stop(rtol=0.0, max_steps=k))(lambda v, a=a: a @ v, g)
            chex.assert_trees_all_close(solution.residual, best, atol=1e-7)
            residuals.append(float(best))
        assert residuals == sorted(residuals, reverse=True)
        assert residuals[-1] < 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_residual_steps_and_status_are_true(name):
    a, g, _ = system(0.9)
    calls = Stop(rtol=0.0, max_steps=6)
    solution = METHODS[name](stop=calls)(lambda v: a @ v, g)
    assert solution.status == Status.MAX_STEPS
    assert solution.steps == 6
    chex.assert_trees_all_close(solution.residual, jnp.linalg.norm(solution.value - a @ solution.value - g), rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_the_tolerance_bounds_the_error(name):
    for seed in range(6):
        a, g, exact = system(0.99, seed=seed)
        solution = METHODS[name](stop=Stop(rtol=1e-4))(lambda v, a=a: a @ v, g)
        assert solution.status == Status.CONVERGED
        assert jnp.linalg.norm(solution.value - exact) <= 1e-3 * jnp.linalg.norm(exact)


@pytest.mark.parametrize("name", METHODS)
def test_failures_have_their_status(name):
    method = METHODS[name](stop=Stop(max_steps=400))
    assert method(lambda v: v, jnp.ones(3)).status == Status.SINGULAR
    assert method(lambda v: v * jnp.nan, jnp.ones(3)).status == Status.NONFINITE
    nothing = method(lambda v: 0.5 * v, jnp.zeros(3))
    assert nothing.status == Status.CONVERGED
    assert nothing.steps == 0
    chex.assert_trees_all_equal(nothing.value, jnp.zeros(3))


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_that_fails_leaves_the_others_alone(name):
    a, g, _ = system(0.9)
    settle = jax.jit(jax.vmap(lambda gain: METHODS[name]()(lambda v: gain * (a @ v), g)))
    well, ill = settle(jnp.array([0.5, 1.0, 0.9])), settle(jnp.array([0.5, jnp.nan, 0.9]))
    keep = jnp.array([0, 2])
    assert ill.status[1] == Status.NONFINITE
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[keep], well), jax.tree.map(lambda x: x[keep], ill))


@pytest.mark.parametrize("name", METHODS)
def test_a_start_at_the_solution_needs_one_product(name):
    a, g, exact = system(0.9)
    near = METHODS[name](stop=Stop(rtol=1e-3))(lambda v: a @ v, g, start=exact * (1 + 1e-9))
    far = METHODS[name](stop=Stop(rtol=1e-3))(lambda v: a @ v, g)
    assert near.status == Status.CONVERGED
    assert 2 * int(near.steps) < int(far.steps)


@pytest.mark.parametrize("name", METHODS)
def test_it_is_an_exact_adjoint_in_both_modes(name, network):
    args, f = network
    weights = jnp.arange(1.0, 9.0)

    def loss(adjoint):
        relax = implicit(picard(), adjoint, TIGHT)
        return lambda args: weights @ relax(f, args, jnp.zeros(8)).value

    ours, exact = loss(METHODS[name](stop=TIGHT)), loss(dense())
    chex.assert_trees_all_close(jax.jit(jax.grad(ours))(args), jax.grad(exact)(args), atol=1e-10)
    push = lambda function: jax.jit(lambda args: jax.jvp(function, (args,), (args,))[1])(args)
    chex.assert_trees_all_close(push(ours), push(exact), atol=1e-10)


def test_half_precision_states_are_solved_in_single():
    a, g, exact = system(0.9)
    low = a.astype(jnp.bfloat16)
    solution = gmres()(lambda v: low @ v, g.astype(jnp.bfloat16))
    assert solution.value.dtype == jnp.bfloat16
    assert solution.residual.dtype == jnp.float32
    assert jnp.linalg.norm(solution.value.astype(float) - exact) < 0.1 * jnp.linalg.norm(exact)


@pytest.mark.parametrize(
    ("rho", "errors"),
    [(0.99, {1: 0.77, 5: 0.66, 10: 0.46, 20: 0.34, 50: 0.15}), (0.9, {1: 0.71, 5: 0.37, 10: 0.2, 20: 0.048})],
)
def test_published_errors_of_truncated_series_are_reproduced(rho, errors):
    """Relative error of λ after K terms, n = 64: the median of 9 matrices is within their spread, a factor of three."""
    for terms, published in errors.items():
        found = []
        for seed in range(9):
            a, g, exact = system(rho, n=64, seed=seed)
            value = neumann(terms)(lambda v, a=a: a.T @ v, g).value
            exact = jnp.linalg.solve((jnp.eye(64) - a).T, g)
            found.append(jnp.linalg.norm(value - exact) / jnp.linalg.norm(exact))
        assert 1 / 3 < float(jnp.median(jnp.array(found))) / published < 3


def test_newton_needs_few_steps_where_plain_iteration_needs_hundreds(network):
    (w, b), f = network
    hard = (w * 1.5, b)
    expected = solve(lambda z: f(hard, z), jnp.zeros(8), picard(), Stop(rtol=1e-13, max_steps=5000))
    newton = solve(lambda z: f(hard, z), jnp.zeros(8), newton_krylov(), Stop(rtol=1e-10))
    assert newton.status == Status.CONVERGED
    assert 4 * int(newton.steps) < int(expected.steps)
    chex.assert_trees_all_close(newton.value, expected.value, atol=1e-9)


def test_newton_settles_what_does_not_contract():
    f = lambda z: -3 * z + jnp.sin(z) + 1
    solution = solve(f, jnp.zeros(4), newton_krylov(), Stop(rtol=1e-10))
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value, f(solution.value), atol=1e-9)


def test_memory_of_nothing_is_refused():
    with pytest.raises(ValueError, match="memory must be at least 1, got 0"):
        gmres(0)


def test_every_method_is_in_the_examples():
    assert set(METHODS) == set(krylov.EXAMPLES)
