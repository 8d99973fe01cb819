"""Plasticity: what is measured, and what is renewed, at which moment, with which weights and moments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.continual.activity import mean_activity
from bptoolkit.continual.renewal import Judged, _select, forget_moments, outgoing, renew
from bptoolkit.fixed_point import almeida_pineda, implicit, picard
from bptoolkit.models import convnet, equilibrium, mlp, rate_cell
from bptoolkit.types import Info, Model

MODEL = mlp(4, 5, 6)
RECURRENT = equilibrium(rate_cell(4, 5, 6), implicit(picard(), almeida_pineda()))
RULE = learning.backprop(MODEL)
BLIND = Model(MODEL.init, lambda params, x: (x, Info()))


def with_dead_units(params, dead):
    """Units of the hidden layer that a ReLU never lets through; all others it always does."""
    lower = params[0]
    return ({"w": lower["w"].at[:, dead].set(0), "b": (lower["b"] + 9).at[dead].set(-1)}, params[1])


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(1))


@pytest.fixture(scope="module")
def rows(clouds, drive):
    return drive(RULE, clouds()).rows(0)


def test_dormant_units_rank_and_norm(params, rows):
    """Two of five units dead: a share of 0.4; the rank by NumPy's singular values; the norm by NumPy."""
    dead = with_dead_units(params, jnp.array([1, 3]))
    found = jax.jit(lambda p, x: cl.plasticity(MODEL, p, x, 0.0))(dead, rows.x)
    assert found.dormant == 0.4
    h = np.maximum(np.asarray(rows.x) @ np.asarray(dead[0]["w"]) + np.asarray(dead[0]["b"]), 0)
    sigma = np.linalg.svd(h, compute_uv=False)
    p = sigma[sigma > 1e-12] / sigma.sum()
    np.testing.assert_allclose(found.effective_rank, np.exp(-(p * np.log(p)).sum()), rtol=1e-9)
    assert found.effective_rank <= 3
    np.testing.assert_allclose(found.weight_norm**2, sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(dead)))


# E|h| of the lower layer is 1, 2, 3, 6, 8: a mean of 4 and a maximum of 8.  That of the upper is 300, 120: 210 and 300.
# x is the unit matrix and no layer bends, so that the lower weights are the activities, a row for each input.
LINEAR = mlp(4, 5, 2, 6, activation=lambda h: h)
ACTIVITIES = jnp.array([[4.0, 2, 3, 0, 8], [0, -2, 3, -12, 8], [0, 2, 3, 12, -8], [0, -2, 3, 0, -8]])
SCORED = (
    {"w": ACTIVITIES, "b": jnp.zeros(5)},
    {"w": jnp.zeros((5, 2)).at[2].set(jnp.array([100.0, 40.0])), "b": jnp.zeros(2)},
    {"w": jnp.ones((2, 6)), "b": jnp.zeros(6)},
)


@pytest.mark.parametrize(("threshold", "dormant"), [(0.0, 0), (0.49, 1), (0.5, 2), (0.6, 3), (1.5, 6)])
def test_a_unit_is_dormant_by_the_mean_of_its_own_layer(threshold, dormant):
    """τ · mean is 0, 1.96, 2, 2.4 and 6 below, 0, 102.9, 105, 126 and 315 above.

    By the maximum, 4 and 150 at τ = 0.5, four of seven would be dormant; by a mean over both layers, 31, five.
    """
    found = cl.plasticity(LINEAR, SCORED, jnp.eye(4), threshold).dormant
    np.testing.assert_allclose(found, dormant / 7, atol=1e-12)


@pytest.mark.parametrize(("rank", "features"), [(1, np.ones((6, 4))), (4, np.eye(4)), (0, np.zeros((3, 4)))])
def test_the_effective_rank_of_what_one_knows(rank, features):
    np.testing.assert_allclose(cl.effective_rank(jnp.asarray(features)), rank, rtol=1e-9)


def test_activity_of_a_settled_state_and_of_channels(rows):
    params = RECURRENT.init(jax.random.key(1))
    assert RECURRENT.cell is not None
    z = jnp.zeros(5)
    for _ in range(60):
        z = RECURRENT.cell.step(params, rows.x[0], z)
    one = jax.tree.map(lambda leaf: leaf[:1], rows)
    np.testing.assert_allclose(mean_activity(RECURRENT, params, one)[0], np.abs(z), atol=1e-7)
    image = convnet((2, 2), 3, channels=(2,), kernel=2)
    weights = image.init(jax.random.key(2))
    places = jax.vmap(lambda x: image.layers[0].activation(image.layers[0].linear(weights[0], x)))(rows.x)
    np.testing.assert_allclose(mean_activity(image, weights, rows)[0], np.abs(places).mean((0, 1, 2)), atol=1e-12)


def test_what_leaves_a_unit(params):
    np.testing.assert_allclose(outgoing(MODEL, params)[0], np.abs(np.asarray(params[1]["w"])).sum(1))


def test_silent_units_renewed_change_no_answer(params, rows):
    """Law of ReDo at threshold 0: the batch is answered as before; fresh weights enter, zeros leave, the rest stays."""
    dead = with_dead_units(params, jnp.array([1, 3]))
    learner = cl.redo(0.0, every=2)(RULE)
    memory = learner.init(params, None, jax.random.key(0))
    memory = memory._replace(step=jnp.int32(1))
    step = jax.jit(lambda m, p: learner.after_step(m, p, p, (), rows, jax.random.key(5)))
    renewed, _, memory = step(memory, dead)
    answer = lambda p: jax.vmap(MODEL.apply, (None, 0))(p, rows.x)[0]
    np.testing.assert_allclose(answer(renewed), answer(dead), atol=1e-12)
    changed = np.any(np.asarray(renewed[0]["w"] != dead[0]["w"]), 0)
    np.testing.assert_array_equal(changed, [False, True, False, True, False])
    np.testing.assert_array_equal(np.asarray(renewed[1]["w"])[[1, 3]], 0)
    chex.assert_trees_all_equal(step(memory, dead)[0], dead)  # the next step is not one of every two


def test_redo_renews_the_units_below_its_share_of_the_mean():
    """τ = 0.5: of E|h| = 1, 2, 3, 6, 8 the first two, above none.  By the maximum, the third and an upper one too.

    A fifth row, of weight 0, would raise all of them.  The weights before the step have no say.
    """
    x = jnp.concatenate([jnp.eye(4), jnp.full((1, 4), 50.0)])
    rows = learning.rows_of(x, jnp.zeros(5, jnp.int32), 6, 1.0)._replace(weight=jnp.array([1.0, 1, 1, 1, 0]))
    np.testing.assert_allclose(mean_activity(LINEAR, SCORED, rows)[0], [1, 2, 3, 6, 8], atol=1e-12)
    learner = cl.redo(0.5, every=1)(learning.backprop(LINEAR))
    memory = learner.init(SCORED, None, jax.random.key(0))
    before = jax.tree.map(jnp.ones_like, SCORED)
    renewed = jax.jit(lambda m, p: learner.after_step(m, before, p, (), rows, jax.random.key(5))[0])(memory, SCORED)
    changed = [np.any(np.asarray(new["w"] != old["w"]), 0).tolist() for new, old in zip(renewed, SCORED, strict=True)]
    assert changed == [[True, True, False, False, False], [False, False], [False] * 6]


def test_renewed_weights_are_fresh_ones_and_moments_forget_them(params):
    """Adam's two means are cleared at these weights and nowhere else; its count stays."""
    fresh = MODEL.init(jax.random.key(9))
    units = (jnp.array([True, False, False, False, False]),)
    renewed, touched = renew(MODEL, params, fresh, units)
    np.testing.assert_array_equal(renewed[0]["w"][:, 0], fresh[0]["w"][:, 0])
    np.testing.assert_array_equal(renewed[0]["b"][0], fresh[0]["b"][0])
    np.testing.assert_array_equal(renewed[1]["w"][0], 0)
    np.testing.assert_array_equal(renewed[0]["w"][:, 1:], params[0]["w"][:, 1:])
    np.testing.assert_array_equal(renewed[1]["b"], params[1]["b"])
    state = optax.adam(0.1).init(params)
    ones = lambda tree: jax.tree.map(jnp.ones_like, tree)
    adam = forget_moments((state[0]._replace(mu=ones(params), nu=ones(params)), state[1]), params, touched)[0]
    for mean in (adam.mu, adam.nu):
        chex.assert_trees_all_equal(mean, jax.tree.map(lambda t: jnp.where(t, 0.0, 1.0), touched))
    assert adam.count == state[0].count


def test_in_a_cell_a_renewed_unit_hears_but_is_not_heard():
    params, fresh = (RECURRENT.init(jax.random.key(seed)) for seed in (1, 2))
    renewed, _ = renew(RECURRENT, params, fresh, (jnp.arange(5) == 2,))
    np.testing.assert_array_equal(renewed["w"][2], 0)
    np.testing.assert_array_equal(renewed["v"][2], 0)
    others = np.array([0, 1, 3, 4])
    np.testing.assert_array_equal(renewed["w"][others, 2], fresh["w"][others, 2])
    np.testing.assert_array_equal(renewed["u"][:, 2], fresh["u"][:, 2])
    np.testing.assert_array_equal(renewed["c"], params["c"])


def test_continual_backprop_renews_the_least_useful_mature_unit(params, rows):
    """Utilities by the formula in NumPy; at ρ = 0.3 with five mature units, 1.5 are due: the least one goes."""
    learner = cl.continual_backprop(0.3, maturity=2, decay=0.9)(RULE)
    start: Judged = learner.init(params, None, jax.random.key(0))
    step = jax.jit(lambda m, p: learner.after_step(m, p, p, (), rows, jax.random.key(5)))
    h = np.maximum(np.asarray(rows.x) @ np.asarray(params[0]["w"]) + np.asarray(params[0]["b"]), 0)
    contribution = h.mean(0) * np.abs(np.asarray(params[1]["w"])).sum(1)
    memory = start
    for n in range(1, 3):
        same, _, memory = step(memory, params)
        chex.assert_trees_all_equal(same, params)
        np.testing.assert_allclose(memory.utility[0], contribution * (1 - 0.9**n), atol=1e-12)
    renewed, _, memory = step(memory, params)
    gone = np.flatnonzero(np.any(np.asarray(renewed[0]["w"] != params[0]["w"]), 0))
    assert gone.tolist() == [contribution.argmin()]
    assert memory.age[0][gone[0]] == 0
    assert memory.utility[0][gone[0]] == 0
    np.testing.assert_allclose(memory.due[0], 0.5)


def test_young_units_are_judged_by_what_their_utility_tends_to():
    """0.1/(1 − 0.9³) is 0.37, 0.2/(1 − 0.9⁵⁰) is 0.20: the second goes, though its mean so far is larger."""
    units, due = _select(jnp.array([0.1, 0.2]), jnp.array([3.0, 50.0]), jnp.array(1.0), 0.5, 2, 0.9)
    assert units.tolist() == [False, True]
    assert due == 1


def test_shaking_happens_before_a_task_and_not_before_the_first(params):
    learner = cl.shrink_and_perturb(0.5, 0.25)(RULE)
    memory = learner.init(params, None, jax.random.key(0))
    begin = lambda memory, task: learner.start_task(memory, params, jnp.int32(task), jax.random.key(4))
    first, memory = begin(memory, 0)
    chex.assert_trees_all_equal(first, params)
    shaken = jax.tree.map(lambda p, s: (s - 0.5 * p) / 0.25, params, begin(memory, 1)[0])
    chex.assert_trees_all_close(shaken, MODEL.init(jax.random.split(jax.random.key(4))[1]), atol=1e-12)


def test_l2_init_pulls_back_from_the_first_step(params, rows):
    """∇ of strength · ‖θ − θ_0‖²: 2 · strength · (θ − θ_0)."""
    learner = cl.l2_init(0.3)(RULE)
    memory = learner.init(params, None, jax.random.key(0))
    now = MODEL.init(jax.random.key(8))
    found = jax.jit(learner.gradient)(memory, now, rows, jax.random.key(0))[0]
    plain = jax.jit(RULE.gradient)((), now, rows, jax.random.key(0))[0]
    pull = jax.tree.map(lambda g, p, n, o: g - p - 0.6 * (n - o), found, plain, now, params)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(pull)) < 1e-12


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.redo(-1.0), "threshold must be at least 0"),
        (lambda: cl.redo(every=0), "every must be at least 1, got 0"),
        (lambda: cl.continual_backprop(2.0), r"rate must be in \[0, 1\]"),
        (lambda: cl.continual_backprop(decay=1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: cl.shrink_and_perturb(1.5), r"shrink must be in \[0, 1\]"),
        (lambda: cl.l2_init(-1.0), "strength must be at least 0"),
        (lambda: cl.plasticity(MODEL, MODEL.init(jax.random.key(0)), jnp.ones((2, 4)), -1.0), "threshold must be"),
        (lambda: cl.plasticity(mlp(4, 3), mlp(4, 3).init(jax.random.key(0)), jnp.ones((2, 4))), "got one with none"),
        (lambda: cl.plasticity(MODEL, MODEL.init(jax.random.key(0)), jnp.ones((0, 4))), "x must have at least one row"),
        (lambda: cl.redo()(learning.backprop(BLIND)).init((), None, jax.random.key(0)), "shows its hidden units"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
