"""Cells: what they compute, that they contract at the start, and Hopfield's energy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import symmetric
from bptoolkit.models import activations, hopfield_cell, rate_cell

CELLS = {"rate": rate_cell, "hopfield": hopfield_cell}
every = pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)


def drawn(cell, key, inputs=3):
    """Parameters, an input and a state."""
    key_p, key_x, key_z = jax.random.split(key, 3)
    return cell.init(key_p), jax.random.normal(key_x, (inputs,)), jax.random.uniform(key_z, cell.state.shape)


def test_rate_cell_is_g_of_the_weighted_sum(key):
    cell = rate_cell(3, 4, 2)
    params, x, z = drawn(cell, key)
    p = jax.tree.map(np.asarray, params)
    np.testing.assert_allclose(cell.step(params, x, z), np.tanh(p["w"].T @ z + p["u"].T @ x + p["b"]), rtol=1e-14)
    np.testing.assert_allclose(cell.readout(params, z), p["v"].T @ z + p["c"], rtol=1e-14)


@every
def test_step_is_the_response_to_the_drive(make, key):
    cell = make(3, 4, 2)
    params, x, z = drawn(cell, key)
    np.testing.assert_array_equal(cell.step(params, x, z), cell.respond(params, cell.drive(params, x), z))


@every
@pytest.mark.parametrize("g", [activations.tanh, activations.sigmoid], ids=lambda g: g.name)
def test_step_starts_as_a_contraction_by_its_gain(make, g, key):
    """The spectral norm of W is gain / max g′, so |f(z) − f(y)| ≤ gain · |z − y|."""
    cell = make(3, 30, 2, activation=g, gain=0.8)
    params, x, z = drawn(cell, key)
    norm = np.linalg.norm(np.asarray(params["w"]), 2)
    assert norm * g.steepest == pytest.approx(0.8, rel=1e-10)
    y = z + 0.1 * jnp.sin(jnp.arange(30.0))
    moved = jnp.linalg.norm(cell.step(params, x, z) - cell.step(params, x, y))
    assert float(moved) <= 0.8 * float(jnp.linalg.norm(z - y))


def test_rate_cell_starts_with_every_eigenvalue_on_one_circle(key):
    w = np.asarray(rate_cell(3, 30, 2, gain=0.5).init(key)["w"])
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(w)), 0.5, rtol=1e-10)


def test_a_plain_function_may_be_the_activation(key):
    cell = rate_cell(3, 20, 2, activation=jax.nn.silu, gain=0.5)
    largest = 1.0998393  # of silu′, at the root 2.3994 of a tanh(a/2) = 2
    assert np.linalg.norm(np.asarray(cell.init(key)["w"]), 2) == pytest.approx(0.5 / largest, rel=1e-6)


def test_hopfield_weights_act_symmetric_and_without_self_connections(key):
    """Also after a step of gradient descent has made the raw array asymmetric."""
    cell = hopfield_cell(3, 5, 2, activation=activations.identity)
    params, x, z = drawn(cell, key)
    params["w"] = params["w"] + jnp.arange(25.0).reshape(5, 5)
    jacobian = jax.jacobian(lambda z: cell.step(params, x, z))(z)
    np.testing.assert_array_equal(jacobian, jacobian.T)
    np.testing.assert_array_equal(jnp.diagonal(jacobian), 0)


def energies(cell, energy, params, x, z, steps=400, dt=0.05):
    """The energy along dz/dt = −z + f(z), by Euler steps; each is a convex mixture, so z stays in the range of g."""

    def euler(z, _):
        return z + dt * (cell.step(params, x, z) - z), energy(params, x, z)

    return jax.lax.scan(euler, z, length=steps)[1]


WITH_ENERGY = [g for g in activations.EXAMPLES if g.potential is not None and g is not activations.identity]


@pytest.mark.parametrize("g", WITH_ENERGY, ids=lambda g: g.name)
def test_energy_never_rises_along_the_flow(g, key):
    """Far from contraction too, where the landscape has many minima."""
    strong = 0.9 if g is activations.relu else 3.0  # unbounded units need a bounded energy
    cell = hopfield_cell(3, 8, 2, activation=g, gain=strong)
    starts = jax.vmap(lambda k: drawn(cell, k))(jax.random.split(key, 5))
    paths = np.asarray(jax.vmap(lambda start: energies(cell, cell.energy, *start))(starts))
    assert np.diff(paths).max() <= 1e-12
    assert (paths[:, 0] - paths[:, -1]).min() > 1e-3  # it did move


def test_energy_of_asymmetric_weights_rises_somewhere(key):
    """Negative control: the same function, fed the flow of a rotating network, is no Lyapunov function."""
    rate, hopfield = rate_cell(3, 2, 2), hopfield_cell(3, 2, 2)
    params, x, z = drawn(rate, key)
    params["w"] = 3 * jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    assert np.diff(energies(rate, hopfield.energy, params, x, z)).max() > 1e-3


def test_energy_is_stationary_at_the_fixed_point(key):
    cell = hopfield_cell(3, 6, 2)
    params, x, z = drawn(cell, key)
    z = jax.lax.fori_loop(0, 100, lambda _, z: cell.step(params, x, z), z)  # contracts by a half each time
    np.testing.assert_allclose(jax.grad(cell.energy, argnums=2)(params, x, z), 0, atol=1e-12)


@every
def test_gates_stand_on_the_current_and_on_the_state_that_is_read(make, key):
    """The current that enters a unit counts `target` times, its bias included; what is read of it `source` times."""
    cell, source, target = make(3, 4, 2), jnp.array([0.5, 1.0, 2.0, 0.0]), jnp.array([3.0, 1.0, 0.5, 0.0])
    params, x, z = drawn(cell, key)
    gated = cell.gates(params, source, target)
    np.testing.assert_allclose(cell.drive(gated, x), target * cell.drive(params, x), atol=1e-14)
    np.testing.assert_allclose(cell.readout(gated, z), cell.readout(params, source * z), atol=1e-14)


def test_the_gates_of_a_hopfield_cell_leave_its_weights_symmetric(key):
    """W becomes D W D, D the product of both gates; in a rate cell source and target stand on either side."""
    source, target = jnp.array([0.5, 1.0, 2.0, 0.0]), jnp.array([3.0, 1.0, 0.5, 1.0])
    w = {name: make(3, 4, 2).init(jax.random.clone(key))["w"] for name, make in CELLS.items()}
    gated = {
        name: make(3, 4, 2).gates(make(3, 4, 2).init(jax.random.clone(key)), source, target)["w"]
        for name, make in CELLS.items()
    }
    both = jnp.diag(source * target)
    np.testing.assert_allclose(symmetric(gated["hopfield"]), both @ symmetric(w["hopfield"]) @ both, atol=1e-14)
    np.testing.assert_allclose(gated["rate"], jnp.diag(source) @ w["rate"] @ jnp.diag(target), atol=1e-14)


@every
def test_biases_start_within_the_root_of_the_inputs_of_their_units(make, key):
    """1/√4 for 100 units that hear 4 inputs, 1/√100 for 100 outputs that hear the units."""
    params = make(4, 100, 100).init(key)
    assert 0.4 < jnp.abs(params["b"]).max() <= 0.5
    assert 0.08 < jnp.abs(params["c"]).max() <= 0.1


def test_one_hopfield_unit_has_no_recurrence(key):
    params = hopfield_cell(3, 1, 2).init(key)
    np.testing.assert_array_equal(params["w"], [[0.0]])


@every
@pytest.mark.parametrize(
    ("sizes", "gain", "sentence"),
    [((3, 0, 2), 0.5, "one or more"), ((3, 4, 2), -1.0, "gain must"), ((3, 4, 2), jnp.inf, "gain must")],
)
def test_sizes_and_gains_that_do_not_fit_are_refused(make, sizes, gain, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(*sizes, gain=gain)


@pytest.mark.parametrize("g", [activations.softplus, jax.nn.silu], ids=["softplus", "silu"])
def test_hopfield_refuses_an_activation_without_a_potential(g):
    with pytest.raises(ValueError, match="with a potential"):
        hopfield_cell(3, 4, 2, activation=g)


@every
def test_an_input_of_another_size_is_refused(make, key):
    cell = make(3, 4, 2)
    params, _, z = drawn(cell, key)
    with pytest.raises(ValueError, match="one example of 3 numbers"):
        cell.step(params, jnp.ones(5), z)
