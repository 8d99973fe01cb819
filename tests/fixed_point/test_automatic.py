"""What happens when nothing is said: right on maps that one method alone fails on, and no dearer on easy ones."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import (
    Status,
    Stop,
    almeida_pineda,
    anderson,
    bicgstab,
    dense,
    exact,
    implicit,
    picard,
    settle,
    solve,
)

TIGHT = Stop(rtol=1e-11)


def rotation(gain, n=12):
    """An antisymmetric matrix of spectral radius `gain`."""
    a = jax.random.normal(jax.random.key(2), (n, n))
    a = a - a.T
    return a * (gain / jnp.linalg.norm(a, ord=2))


def test_an_easy_map_is_settled_by_plain_iteration(network):
    args, f = network
    ours, plain = settle(lambda z: f(args, z), jnp.zeros(8)), solve(lambda z: f(args, z), jnp.zeros(8), picard())
    assert ours.status == Status.CONVERGED
    assert 0 <= int(ours.steps) - int(plain.steps) <= 2


@pytest.mark.parametrize("gain", [0.99, 1.5])
def test_a_map_that_plain_iteration_leaves_is_settled_all_the_same(gain):
    a = rotation(gain)
    f = lambda z: a @ z + 1
    assert solve(f, jnp.zeros(12), picard(), Stop(rtol=1e-11, max_steps=300)).status != Status.CONVERGED
    solution = settle(f, jnp.zeros(12), Stop(rtol=1e-11, max_steps=300))
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value, jnp.linalg.solve(jnp.eye(12) - a, jnp.ones(12)), atol=1e-9)


def test_a_relaxation_that_is_lost_begins_again_from_its_start():
    """z = 1 − 2 z³ runs away under plain iteration, to where Anderson's diverges as well."""
    f = lambda z: 1 - 2 * z**3
    lost = solve(f, jnp.zeros(1), picard())
    assert lost.status == solve(f, lost.value, anderson()).status == Status.DIVERGED
    solution = settle(f, jnp.zeros(1))
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(2 * solution.value**3 + solution.value, jnp.ones(1), atol=1e-6)


def test_the_budget_holds_for_both_together():
    a = rotation(0.99)
    assert settle(lambda z: a @ z + 1, jnp.zeros(12), Stop(rtol=0.0, max_steps=70)).steps == 70
    assert settle(lambda z: a @ z + 1, jnp.zeros(12), Stop(rtol=0.0, max_steps=20)).steps == 20


def test_the_default_gradient_is_exact_where_plain_relaxation_has_none():
    """f(z) = tanh(A z) + c with ρ = 3 at the fixed point's neighbourhood of zero activity."""
    a = rotation(3.0)
    relax = lambda adjoint: implicit(adjoint=adjoint, stop=TIGHT)
    loss = lambda adjoint: lambda a: jnp.sum(relax(adjoint)(lambda a, z: a @ z + 0.1, a, jnp.zeros(12)).value ** 2)
    expected = jax.grad(loss(dense()))(a)
    chex.assert_trees_all_close(jax.grad(loss(exact(TIGHT)))(a), expected, rtol=1e-6)
    assert not jnp.allclose(jax.grad(loss(almeida_pineda()))(a), expected, rtol=1e-2)


@pytest.mark.parametrize(("off", "dtype", "left"), [(0.0, float, Status.SINGULAR), (1e-3, "float16", Status.NONFINITE)])
def test_gmres_takes_up_what_bicgstab_leaves(off, dtype, left):
    """Turns by 90° break stabilised bi-conjugate gradients: ⟨shadow, (I − A) shadow⟩ is zero.

    Where it is nearly so, their steps leave float16, and a value of NaN is no start for another method.
    """
    turn = jnp.kron(jnp.eye(5), jnp.array([[off, -1.0], [1.0, off]]))
    quarter, g = (jnp.eye(10) - turn).astype(dtype), jnp.eye(10, dtype=dtype)[0]
    assert bicgstab()(lambda v: quarter @ v, g).status == left
    solution = exact()(lambda v: quarter @ v, g)
    assert solution.status == Status.CONVERGED
    expected = jnp.linalg.solve(turn, jnp.eye(10)[0])
    chex.assert_trees_all_close(solution.value.astype(float), expected, atol=float(jnp.finfo(dtype).eps) ** 0.5)


@pytest.mark.parametrize(("n", "eliminated"), [(8, True), (10, False)])
def test_small_states_are_eliminated(n, eliminated):
    """Elimination reports one step; a Krylov method two products or more on the turns above."""
    quarter = jnp.eye(n) - jnp.kron(jnp.eye(n // 2), jnp.array([[0.0, -1.0], [1.0, 0.0]]))
    solution = exact()(lambda v: quarter @ v, jnp.eye(n)[0])
    assert solution.status == Status.CONVERGED
    assert (solution.steps == 1) == eliminated


def test_samples_of_a_batch_are_as_alone(network):
    (w, b), f = network
    gains = jnp.array([0.3, 1.0, 1.6])
    settle_one = lambda gain: settle(lambda z: f((gain * w, b), z), jnp.zeros(8), TIGHT)
    together = jax.vmap(settle_one)(gains)
    for i, gain in enumerate(gains):
        alone = settle_one(gain)
        chex.assert_trees_all_close(together.value[i], alone.value, atol=1e-10)
        assert abs(int(together.steps[i]) - int(alone.steps)) <= 4  # Anderson follows rounding near the end
