"""Operator splitting against plain arithmetic, damped iteration, and the rates that its theory promises."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import Status, Stop, damped, dense, implicit, picard, relaxation, solve, unrolled
from bptoolkit.fixed_point.splitting import Resolvent, forward_backward, peaceman_rachford

TIGHT = Stop(rtol=1e-12, max_steps=20_000)
M = 0.5  # strong monotonicity of the operators below
SOLVERS = {"forward_backward": forward_backward(0.1), "peaceman_rachford": peaceman_rachford()}
every = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def matrix(size: float, n: int = 8):
    """W = (1 − m) I − AᵀA + B − Bᵀ: of norm 2.7 at size 1, 15 at size 3 and 170 at size 10."""
    a, b = (jax.random.normal(k, (n, n)) * (size / n**0.5) for k in jax.random.split(jax.random.key(5)))
    return (1 - M) * jnp.eye(n) - a.T @ a + b - b.T


def split(args, alpha: float = 0.5):
    """The resolvent of A z = z − (W z + d), by NumPy's textbook formula."""
    w, d = args
    v = jnp.linalg.inv(jnp.eye(len(d)) + alpha * (jnp.eye(len(d)) - w))
    return Resolvent(lambda z: w @ z + d, lambda u: v @ (u + alpha * d))


def network(size: float = 1.0):
    args = matrix(size), jnp.sin(jnp.arange(8.0))
    return args, lambda a, z: jax.nn.relu(a[0] @ z + a[1])


def settle(solver, args, f, stop=TIGHT, z0=None, **extra):
    extra = extra or {"resolvent": split(args)}
    return solve(lambda z: f(args, z), jnp.zeros(8) if z0 is None else z0, solver, stop, **extra)


@every
def test_the_fixed_point_is_that_of_damped_iteration(solver):
    """Hundreds of very short Euler steps of dz/dt = −z + f(z), which is stable here."""
    args, f = network()
    solution, slow = settle(solver, args, f), settle(relaxation(0.05), args, f)
    assert (solution.status, slow.status) == (Status.CONVERGED, Status.CONVERGED)
    chex.assert_trees_all_close(solution.value, slow.value, atol=1e-10)
    assert 0 < jnp.sum(solution.value > 0) < 8  # some units are off: relu is not the identity here


@pytest.mark.parametrize("solver", [picard(), damped(0.3)], ids=["picard", "damped"])
def test_plain_iteration_does_not_settle_where_splitting_does(solver):
    """Negative control: the same network, far outside the contractions."""
    args, f = network(3.0)
    assert settle(solver, args, f, Stop(max_steps=2000)).status != Status.CONVERGED
    assert settle(peaceman_rachford(), args, f).status == Status.CONVERGED


@pytest.mark.parametrize("size", [0.3, 3.0, 10.0])
@pytest.mark.parametrize("alpha", [0.03, 0.3, 3.0])
def test_peaceman_rachford_settles_at_every_size_and_step_length(size, alpha):
    args, f = network(size)
    reached = Stop(rtol=1e-9, max_steps=20_000)
    solution = settle(peaceman_rachford(), args, f, reached, resolvent=split(args, alpha))
    again = settle(peaceman_rachford(), args, f, reached, z0=jnp.full(8, 5.0))
    assert (solution.status, again.status) == (Status.CONVERGED, Status.CONVERGED)
    chex.assert_trees_all_close(solution.value, again.value, rtol=1e-7, atol=1e-9)  # there is only one


def test_forward_backward_contracts_as_its_bound_says_and_fails_far_beyond_it():
    """Distances to z* shrink by √(1 − 2αm + α²L²) or faster in every step; at twenty times 2m/L² it does not settle."""
    args, f = network()
    z_star = settle(peaceman_rachford(), args, f).value
    length = np.linalg.norm(np.eye(8) - np.asarray(args[0]), 2)
    alpha = M / length**2
    solver, z, distances = forward_backward(alpha), jnp.full(8, 3.0), []
    for _ in range(30):
        distances.append(float(jnp.linalg.norm(z - z_star)))
        z = z + solver.update(z, solver.init(z), z, resolvent=split(args))[0]
    ratios = np.divide(distances[1:], distances[:-1])
    assert ratios.max() <= (1 - 2 * alpha * M + alpha**2 * length**2) ** 0.5 + 1e-12
    far = settle(forward_backward(40 * M / length**2), args, f, Stop(max_steps=2000))
    assert far.status != Status.CONVERGED


def test_forward_backward_of_length_one_is_picard():
    args, f = network(0.2)
    one, other = (settle(s, args, f, Stop(rtol=1e-8)) for s in (forward_backward(1.0), picard()))
    chex.assert_trees_all_close(one.value, other.value, atol=1e-14)
    assert one.steps == other.steps


def test_one_step_of_peaceman_rachford_written_out():
    args, _ = network()
    (w, d), alpha = (np.asarray(x) for x in args), 0.5
    u = np.cos(np.arange(8.0))
    half = 2 * np.maximum(u, 0) - u
    middle = np.linalg.solve(np.eye(8) + alpha * (np.eye(8) - w), half + alpha * d)
    z = jnp.zeros(8)
    change, memory = peaceman_rachford().update(z, jnp.asarray(u), z, resolvent=split(args))
    np.testing.assert_allclose(memory, 2 * middle - half, atol=1e-12)
    np.testing.assert_allclose(change, np.maximum(2 * middle - half, 0), atol=1e-12)


def test_the_memory_settles_at_the_forward_step_from_the_fixed_point():
    """u* = z* − α A z*, and σ(u*) = z*."""
    args, f = network()
    solution = settle(peaceman_rachford(), args, f)
    z, u = solution.value, solution.memory
    chex.assert_trees_all_close(u, z + 0.5 * (args[0] @ z + args[1] - z), atol=1e-10)
    chex.assert_trees_all_close(jax.nn.relu(u), z, atol=1e-12)


@every
def test_other_projections_may_stand_for_relu(solver):
    """A clip to ±1/2, and the same network settled by short Euler steps."""
    args, _ = network()
    clip = lambda a: jnp.clip(a, -0.5, 0.5)
    f = lambda a, z: clip(a[0] @ z + a[1])
    same = forward_backward(0.1, clip) if solver is SOLVERS["forward_backward"] else peaceman_rachford(clip)
    solution = settle(same, args, f)
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value, settle(relaxation(0.05), args, f).value, atol=1e-10)


@every
def test_a_proximal_map_of_another_network_is_never_called_converged(solver):
    """Negative control: relu in the solver, tanh in the network; the residual is the network's own."""
    args, _ = network()
    solution = settle(solver, args, lambda a, z: jnp.tanh(a[0] @ z + a[1]), Stop(max_steps=2000))
    assert solution.status != Status.CONVERGED


@every
def test_an_implicit_gradient_is_that_of_the_dense_solve(solver):
    """And of backpropagation through the steps, where the extra argument is differentiated as well."""
    args, f = network()
    relaxed = {"implicit": implicit(solver, dense(), TIGHT), "unrolled": unrolled(500, solver)}
    weights = jnp.arange(1.0, 9.0)

    def gradient(relax):
        extra = lambda a: {"resolvent": split(a)}
        loss = lambda a: jnp.sum(weights * relax(f, a, jnp.zeros(8), extra=extra).value ** 2)
        return jax.jit(jax.grad(loss))(args)

    z = settle(peaceman_rachford(), args, f).value
    on = (z > 0).astype(z.dtype)
    delta = on * jnp.linalg.solve((jnp.eye(8) - on[:, None] * args[0]).T, 2 * weights * z)
    for relax in relaxed.values():
        chex.assert_trees_all_close(gradient(relax), (jnp.outer(delta, z), delta), atol=1e-9)


@every
def test_one_example_in_a_batch_settles_as_alone(solver):
    args, f = network()
    inputs = jnp.stack([args[1], 3 * args[1], jnp.full(8, jnp.nan)])
    run = lambda d: settle(solver, (args[0], d), f)
    together, alone = jax.vmap(run)(inputs), run(3 * args[1])
    chex.assert_trees_all_close(together.value[1], alone.value, atol=1e-13)
    assert (together.steps[1], together.status[1]) == (alone.steps, Status.CONVERGED)
    assert together.status[2] == Status.NONFINITE


@every
def test_the_state_may_be_a_tree_and_keeps_its_dtype(solver):
    args, f = jax.tree.map(lambda x: x.astype(jnp.float32), network()[0]), network()[1]
    parts, whole = lambda z: {"a": z[:3], "b": z[3:]}, lambda t: jnp.concatenate([t["a"], t["b"]])
    v = jnp.linalg.inv(1.5 * jnp.eye(8, dtype=jnp.float32) - jnp.float32(0.5) * args[0])
    resolvent = Resolvent(
        lambda t: parts(args[0] @ whole(t) + args[1]), lambda t: parts(v @ (whole(t) + jnp.float32(0.5) * args[1]))
    )
    start = parts(jnp.zeros(8, jnp.float32))
    solution = solve(lambda t: parts(f(args, whole(t))), start, solver, Stop(max_steps=5000), resolvent=resolvent)
    assert solution.status == Status.CONVERGED
    expected = settle(peaceman_rachford(), *network()).value
    chex.assert_trees_all_close(whole(solution.value), expected.astype(jnp.float32), atol=1e-3)


def test_the_step_length_may_be_traced():
    args, f = network()
    run = jax.jit(lambda alpha: settle(forward_backward(alpha), args, f).value)
    chex.assert_trees_all_close(run(0.05), run(0.1), atol=1e-10)
    assert run._cache_size() == 1


@every
def test_a_missing_resolvent_is_a_sentence(solver):
    with pytest.raises(ValueError, match="needs the extra argument `resolvent`, got none"):
        solve(lambda z: z / 2, jnp.ones(2), solver)


def test_a_step_length_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="alpha must be positive and finite, got 0"):
        forward_backward(0)
