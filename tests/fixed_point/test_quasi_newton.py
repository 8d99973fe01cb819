"""Broyden's method against the secant equation and dense solves, and its factors in the adjoint."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import Status, Stop, broyden, dense, implicit, neumann, one_step, picard, shine, solve

TIGHT = Stop(rtol=1e-12)


def factor_matrix(factors):
    return jnp.eye(factors.u.shape[1]) + factors.u.T @ factors.v.conj()


def symmetric_map(rho, n=30):
    q = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (n, n)))[0]
    m = q @ jnp.diag(jnp.linspace(-rho, rho, n)) @ q.T
    return (lambda z: m @ z + 1.0), jnp.linalg.solve(jnp.eye(n) - m, jnp.ones(n))


def test_the_newest_correction_satisfies_the_secant_equation(network):
    """H Δr = Δz for the last step made, by the definition of the method."""
    args, f = network
    solver, z = broyden(4), jnp.zeros(8)
    memory, r = solver.init(z), z - f(args, z)
    for _ in range(6):  # past the first new beginning
        moved, memory = solver.update(r, memory, z)
        z, before = z + moved, r
        r = z - f(args, z)
        learned = solver.update(r, memory, z)[1]
        chex.assert_trees_all_close(factor_matrix(learned) @ (r - before), moved, atol=1e-10)


def test_the_first_step_is_plain_iteration(network):
    args, f = network
    one = solve(lambda z: f(args, z), jnp.zeros(8), broyden(), Stop(max_steps=1))
    chex.assert_trees_all_close(one.value, f(args, jnp.zeros(8)))


def test_a_linear_map_of_n_dimensions_takes_at_most_two_n_steps():
    """Gay (1979).  With ρ = 0.99 plain iteration takes two thousand."""
    f, exact = symmetric_map(0.99, n=8)
    solution = solve(f, jnp.zeros(8), broyden(20), Stop(rtol=0.0, max_steps=16))
    chex.assert_trees_all_close(solution.value, exact, rtol=1e-8)


@pytest.mark.parametrize("rho", [0.9, 0.99, 0.999])
def test_it_converges_where_memory_is_short(rho):
    f, exact = symmetric_map(rho)
    solution = solve(f, jnp.zeros(30), broyden(5), Stop(rtol=1e-6, max_steps=2000))
    assert solution.status == Status.CONVERGED
    assert jnp.linalg.norm(solution.value - exact) <= 3e-6 * jnp.linalg.norm(exact)


def test_it_settles_where_plain_iteration_diverges():
    f = lambda z: -3 * z + 1
    assert solve(f, jnp.zeros(3), picard(), TIGHT).status == Status.DIVERGED
    chex.assert_trees_all_close(solve(f, jnp.zeros(3), broyden(), TIGHT).value, jnp.full(3, 0.25))


def test_an_anti_symmetric_complex_map_is_solved():
    m = jnp.array([[0.1 + 0.5j, 0.3], [-0.2j, 0.6 - 0.2j]])
    solution = solve(lambda z: m @ z + 1, jnp.zeros(2, complex), broyden(), TIGHT)
    right = jnp.linalg.solve(jnp.eye(2, dtype=complex) - m, jnp.ones(2, complex))
    chex.assert_trees_all_close(solution.value, right, rtol=1e-10)


def gradient_errors(network, adjoints):
    """Distance of each gradient from the exact one."""
    args, f = network
    weights = jnp.arange(1.0, 9.0)

    def gradient(adjoint):
        relax = implicit(broyden(20), adjoint, TIGHT)
        return jax.jit(jax.grad(lambda args: weights @ relax(f, args, jnp.zeros(8)).value))(args)[0]

    exact = gradient(dense())
    return [float(jnp.linalg.norm(gradient(a) - exact) / jnp.linalg.norm(exact)) for a in adjoints]


def test_the_shared_inverse_is_better_than_none_and_refinement_better_still(network):
    """H is near (I − J)⁻¹ along the steps made, so each refinement gains more than a term of Neumann's series."""
    none, shared, three, ten = gradient_errors(network, [neumann(0), shine(), shine(3), shine(20)])
    assert shared < none
    assert three < shared / 5
    assert ten < 1e-8


def test_shine_reports_its_true_residual(network):
    args, f = network
    w = args[0]
    settled = solve(lambda z: f(args, z), jnp.zeros(8), broyden(), TIGHT)
    jacobian = (1 - settled.value**2)[:, None] * w
    solution = shine(1)(lambda v: jacobian.T @ v, jnp.ones(8), factors=settled.memory)
    true = jnp.linalg.norm(solution.value - jacobian.T @ solution.value - 1)
    chex.assert_trees_all_close(solution.residual, true, rtol=1e-12)
    assert solution.status == Status.MAX_STEPS


def test_shine_without_broyden_is_refused(network):
    args, f = network
    loss = lambda args: implicit(picard(), shine())(f, args, jnp.zeros(8)).value.sum()
    with pytest.raises(ValueError, match=r"shine needs the factors .* got those of EmptyState.*\n.*implicit\(broyden"):
        jax.grad(loss)(args)


@pytest.mark.parametrize(
    ("make", "sentence"), [(lambda: broyden(0), "memory must"), (lambda: shine(-1), "refine must")]
)
def test_numbers_out_of_range_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_shine_without_a_forward_solver_is_refused(network):
    args, f = network
    loss = lambda args: implicit(adjoint=shine())(f, args, jnp.zeros(8)).value.sum()
    with pytest.raises(ValueError, match="Take implicit\\(broyden\\(\\), shine\\(\\)\\)"):
        jax.grad(loss)(args)


def test_forward_mode_takes_no_factors_of_the_transposed_system(network):
    args, f = network
    settle = lambda relax: lambda args: relax(f, args, jnp.zeros(8)).value
    push = jax.tree.map(jnp.ones_like, args)
    by_shine, by_one_step = (
        jax.jvp(settle(implicit(broyden(), adjoint)), (args,), (push,))[1] for adjoint in (shine(), one_step())
    )
    chex.assert_trees_all_close(by_shine, by_one_step, rtol=1e-9)
