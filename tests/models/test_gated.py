"""The gated cell: what it computes, which gate a fixed point remembers, its contraction and its gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import Status, Stop, implicit, unrolled
from bptoolkit.models import equilibrium
from bptoolkit.models.gated import gated_cell

X = jnp.array([0.3, -1.0, 0.7])
TIGHT = implicit(stop=Stop(rtol=1e-13))


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def minimal_gated_unit(p, x, z):
    """Zhou et al. (2016), eqs. (8)-(10): one gate f, outside and inside of the candidate."""
    f = sigmoid(p["r"].T @ z + p["s"].T @ x + p["q"])
    candidate = np.tanh(p["w"].T @ (f * z) + p["u"].T @ x + p["b"])
    return (1 - f) * z + f * candidate


def test_step_is_the_equation(key):
    cell = gated_cell(3, 4, 2)
    params, z = cell.init(key), jnp.array([0.5, -0.2, 0.9, -0.7])
    p = jax.tree.map(np.asarray, params)
    r = sigmoid(p["r"].T @ z + p["s"].T @ X + p["q"])
    np.testing.assert_allclose(cell.step(params, X, z), np.tanh(p["w"].T @ (r * z) + p["u"].T @ X + p["b"]), rtol=1e-12)
    np.testing.assert_allclose(cell.readout(params, z), p["v"].T @ z + p["c"], rtol=1e-12)
    np.testing.assert_array_equal(cell.step(params, X, z), cell.respond(params, cell.drive(params, X), z))


def test_a_gated_recurrent_network_settles_where_the_cell_does(key):
    """The outer gate leaves no trace: the same state, in more steps."""
    model = equilibrium(gated_cell(3, 6, 2), TIGHT)
    params = model.init(key)
    solution = model.cell.settle(params, X)
    p, z, moves = jax.tree.map(np.asarray, params), np.zeros(6), []
    for _ in range(300):
        moved = minimal_gated_unit(p, np.asarray(X), z)
        moves.append(np.abs(moved - z).max())
        z = moved
    np.testing.assert_allclose(solution.value, z, atol=1e-12)
    assert moves[int(solution.steps)] > 1e-10  # it was still on its way when the cell had settled


def test_the_gate_inside_does_leave_a_trace(key):
    """Negative control: open all gates, and the network settles elsewhere."""
    model = equilibrium(gated_cell(3, 6, 2), TIGHT)
    params = model.init(key)
    opened = params | {"q": params["q"] + 50}
    moved = model.cell.settle(params, X).value - model.cell.settle(opened, X).value
    assert jnp.abs(moved).max() > 1e-2


def test_step_starts_as_a_contraction_by_its_gain_on_the_range_of_tanh(key):
    """The spectral norm of the Jacobian at 50 states in [−1, 1]^30, corners and zero among them."""
    cell = gated_cell(3, 30, 2, gain=0.8)
    key_p, key_z = jax.random.split(key)
    params = cell.init(key_p)
    states = jax.random.uniform(key_z, (50, 30), minval=-1.0, maxval=1.0).at[:10].apply(jnp.sign).at[10].set(0)
    jacobians = jax.vmap(jax.jacobian(lambda z: cell.step(params, 0 * X, z)))(states)
    norms = np.linalg.norm(np.asarray(jacobians), 2, axis=(1, 2))
    assert norms.max() <= 0.8
    assert norms.max() > 0.25  # and the net is not just nearly silent
    np.testing.assert_allclose(np.linalg.norm(params["w"], 2), 0.8 / (1 + 1 / 4))  # the rest is at most 1 + 1/4


def test_gradient_equals_backpropagation_through_time(key):
    cell = gated_cell(3, 6, 2)
    params = cell.init(key)

    def gradient(relax):
        model = equilibrium(cell, relax)
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(model.apply(params, X)[0]))))(params)

    by_adjoint = gradient(TIGHT)
    chex.assert_trees_all_close(by_adjoint, gradient(unrolled(60)), atol=1e-12)  # 0.5^60 is 1e-18
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(by_adjoint))


def test_it_settles_by_plain_iteration_at_the_start(key):
    model = equilibrium(gated_cell(3, 30, 2, gain=0.9))
    info = model.apply(model.init(key), X)[1]
    assert info.forward.status == Status.CONVERGED


@pytest.mark.parametrize(
    ("sizes", "gain", "sentence"),
    [
        ((3, 0, 2), 0.5, "one or more"),
        ((3, 4, 2), -1.0, "gain must"),
        ((3, 4, 2), jnp.inf, "gain must"),
        ((3, 4, 2), None, "gain must"),
    ],
)
def test_sizes_and_gains_that_do_not_fit_are_refused(sizes, gain, sentence):
    with pytest.raises(ValueError, match=sentence):
        gated_cell(*sizes, gain=gain)
