"""The graph cell: its linear system by NumPy, its contraction for all weights, and the symmetries of graphs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import Status, Stop, implicit, unrolled
from bptoolkit.models import equilibrium
from bptoolkit.models.graph import graph_cell

# A directed graph of five nodes: one is in two cycles, node 4 only listens, and node 3 hears nobody.
ADJACENCY = np.array([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]])
X = jnp.sin(jnp.arange(15.0)).reshape(5, 3)
TIGHT = implicit(stop=Stop(rtol=1e-13))


def wild(cell, key, size=50.0):
    """Parameters far larger than training would make them."""
    return jax.tree.map(lambda leaf: size * leaf, cell.init(key))


def layer(p, h):
    return np.asarray(h) @ np.asarray(p["w"]) + np.asarray(p["b"])


def network(params, h):
    return layer(params[1], np.tanh(layer(params[0], h)))


def linear_system(params, units, bound):
    """The papers' A, whole, and b, with loops over nodes: z = A z + b for all states in one vector."""
    n = len(ADJACENCY)
    a = np.zeros((n, units, n, units))
    for u, v in np.argwhere(ADJACENCY):
        raw = network(params["transition"], np.concatenate([X[u], X[v]])).reshape(units, units)
        a[v, :, u, :] = bound / (units * ADJACENCY[u].sum()) * np.tanh(raw).T
    b = np.stack([network(params["forcing"], X[v]) for v in range(n)])
    return a.reshape(n * units, n * units), b.reshape(-1)


def test_states_solve_the_papers_linear_system(key):
    model = equilibrium(graph_cell(ADJACENCY, 3, 4, 2, bound=0.8), TIGHT)
    params = wild(model.cell, key)
    solution = model.cell.settle(params, X)
    a, b = linear_system(params, 4, 0.8)
    np.testing.assert_allclose(np.ravel(solution.value), np.linalg.solve(np.eye(20) - a, b), rtol=1e-10)
    assert solution.status == Status.CONVERGED


def test_step_is_the_response_to_the_drive(key):
    cell = graph_cell(ADJACENCY, 3, 4, 2)
    params, z = cell.init(key), jnp.cos(jnp.arange(20.0)).reshape(5, 4)
    a, b = linear_system(params, 4, 0.9)
    np.testing.assert_allclose(np.ravel(cell.step(params, X, z)), a @ np.ravel(z) + b, atol=1e-12)
    np.testing.assert_array_equal(cell.step(params, X, z), cell.respond(params, cell.drive(params, X), z))


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_no_weights_can_undo_the_contraction(size, key):
    """The 1-norm of the whole Jacobian; with huge weights every tanh is ±1 and the bound is reached."""
    cell = graph_cell(ADJACENCY, 3, 4, 2, bound=0.7)
    params = wild(cell, key, size)
    jacobian = jax.jacobian(lambda z: cell.step(params, X, z))(jnp.zeros((5, 4))).reshape(20, 20)
    norm = np.linalg.norm(np.asarray(jacobian), 1)
    assert norm <= 0.7 + 1e-12
    assert norm > (0.69 if size > 1 else 0.05)


@pytest.mark.parametrize("pooled", [True, False])
def test_renaming_the_nodes_renames_states_and_outputs(pooled, key):
    order = np.array([3, 0, 4, 2, 1])
    make = lambda adjacency: equilibrium(graph_cell(adjacency, 3, 4, 2, pooled=pooled), TIGHT)
    model, renamed = make(ADJACENCY), make(ADJACENCY[np.ix_(order, order)])
    params = wild(model.cell, key, 3.0)
    before, after = model.cell.settle(params, X).value, renamed.cell.settle(params, X[order]).value
    chex.assert_trees_all_close(before[order], after, atol=1e-12)
    logits, moved = model.apply(params, X)[0], renamed.apply(params, X[order])[0]
    expected = logits if pooled else logits.reshape(5, 2)[order].ravel()
    chex.assert_trees_all_close(moved, expected, atol=1e-12)
    shuffled = model.cell.settle(params, X[order]).value  # negative control: features renamed, edges not
    assert jnp.abs(shuffled - after).max() > 1e-2


def test_news_travel_along_the_edges_only(key):
    """∂z_n/∂x_m is zero exactly where no path leads from m to n."""
    model = equilibrium(graph_cell(ADJACENCY, 3, 2, 2), implicit(stop=Stop(rtol=1e-13)))
    params = wild(model.cell, key, 2.0)
    moved = jax.jit(jax.jacobian(lambda x: model.cell.settle(params, x).value))(X)
    heard = np.abs(np.asarray(moved)).sum((1, 3)) > 1e-12
    reach = np.linalg.matrix_power(np.eye(5, dtype=int) + ADJACENCY, 5) > 0
    # A message depends on the features of the node that hears it, so hearing needs an edge, and its own features too.
    np.testing.assert_array_equal(heard, reach.T)


def test_gradient_equals_backpropagation_through_time(key):
    cell = graph_cell(ADJACENCY, 3, 4, 2, bound=0.5)
    params = cell.init(key)

    def gradient(relax):
        model = equilibrium(cell, relax)
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(model.apply(params, X)[0]))))(params)

    by_adjoint = gradient(TIGHT)
    chex.assert_trees_all_close(by_adjoint, gradient(unrolled(60)), atol=1e-12)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(by_adjoint))


def test_readouts_of_the_graph_and_of_its_nodes(key):
    z = jnp.cos(jnp.arange(20.0)).reshape(5, 4)
    whole, each = (graph_cell(ADJACENCY, 3, 4, 2, pooled=pooled) for pooled in (True, False))
    params = whole.init(key)
    expected = np.asarray(z) @ params["v"] + params["c"]
    np.testing.assert_allclose(each.readout(params, z), expected.ravel(), atol=1e-12)
    np.testing.assert_allclose(whole.readout(params, z), expected.mean(0), atol=1e-12)


def test_a_graph_without_edges_is_a_feed_forward_net(key):
    model = equilibrium(graph_cell(np.zeros((5, 5)), 3, 4, 2), TIGHT)
    params = model.init(key)
    expected = network(params["forcing"], X)
    np.testing.assert_allclose(model.cell.settle(params, X.ravel()).value, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("adjacency", "options", "sentence"),
    [
        (np.ones((2, 3)), {}, r"adjacency must be square, \(nodes, nodes\), got shape \(2, 3\)"),
        (np.zeros((0, 0)), {}, "one or more"),
        (ADJACENCY, {"hidden": 0}, "one or more"),
        (ADJACENCY, {"bound": 1.0}, r"bound must be in \(0, 1\)"),
        (ADJACENCY, {"bound": "a"}, r"bound must be in \(0, 1\), got a"),
        (np.full((5, 5), np.nan), {}, "adjacency must be finite numbers"),
        (np.full((5, 5), "edge"), {}, "adjacency must be finite numbers"),
    ],
)
def test_graphs_and_bounds_that_do_not_fit_are_refused(adjacency, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        graph_cell(adjacency, 3, 4, 2, **options)


def test_the_bound_may_be_traced(key):
    cell = lambda bound: graph_cell(ADJACENCY, 3, 4, 2, bound=bound)
    params = cell(0.3).init(key)
    step = lambda bound: cell(bound).step(params, X, jnp.ones((5, 4)))
    np.testing.assert_allclose(jax.jit(step)(0.3), step(0.3), rtol=1e-12)


def test_features_of_another_size_are_refused(key):
    cell = graph_cell(ADJACENCY, 3, 4, 2)
    with pytest.raises(ValueError, match=r"features of shape \(5, 3\) \(or flat\), got shape \(4, 3\)"):
        cell.drive(cell.init(key), jnp.ones((4, 3)))
