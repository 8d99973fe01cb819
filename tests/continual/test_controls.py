"""Controls: separate nets are independent nets, frozen weights are frozen, what each stage trains on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.continual.readout import readout
from bptoolkit.fixed_point import almeida_pineda, implicit, picard
from bptoolkit.models import equilibrium, mlp, rate_cell
from bptoolkit.types import Info, Model

MODEL = mlp(4, 5, 6)
MOMENTUM = optax.sgd(0.1, momentum=0.9)  # moves also what has no gradient, as Adam does


@pytest.fixture(scope="module")
def separated(clouds, drive):
    driven = drive(cl.separate(learning.backprop(MODEL)), clouds("task"), MOMENTUM)
    return driven, driven.run()


def test_separate_nets_are_nets_trained_on_their_own(separated, clouds, drive):
    """Each net equals one that starts at the same weights, with a fresh optimiser, and never meets another task."""
    driven, stages = separated
    alone = drive(learning.backprop(MODEL), clouds("task"), MOMENTUM)
    drawn = driven.begin().memory.nets[0]
    for task, stage in enumerate(stages):
        start = jax.tree.map(lambda leaf, task=task: leaf[task], drawn)
        independent = alone.stage(alone.begin()._replace(params=start, opt_state=MOMENTUM.init(start)), task)
        chex.assert_trees_all_close(stage.progress.params, independent.progress.params, atol=1e-12)
        np.testing.assert_allclose(stages[-1].logits[task], independent.logits[task], atol=1e-12)


def test_an_optimiser_that_remembers_would_train_other_nets(separated, clouds, drive):
    """Control: without the fresh optimiser state the second net ends elsewhere."""
    driven, stages = separated
    keeps = driven.learner._replace(curriculum=driven.learner.curriculum._replace(reset_optimizer=False))
    second = drive(keeps, clouds("task"), MOMENTUM).run()[1].progress.params
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), second, stages[1].progress.params)
    assert max(jax.tree.leaves(gaps)) > 1e-3


def test_within_a_task_its_net_is_the_one_being_trained(separated):
    """Before the task ends, its answers come from the current weights, and other tasks' from what is kept."""
    driven, stages = separated
    params, memory = driven.learner.start_task(
        stages[0].progress.memory, MODEL.init(jax.random.key(9)), jnp.int32(1), jax.random.key(0)
    )
    moved = jax.tree.map(lambda p: p + 1, params)
    answer = lambda task: driven.learner.predict(memory, moved, driven.rows(task))[0]
    np.testing.assert_allclose(answer(1), jax.vmap(MODEL.apply, (None, 0))(moved, driven.rows(1).x)[0], atol=1e-12)
    np.testing.assert_allclose(answer(0), stages[0].logits[0], atol=1e-12)


def test_a_penalty_around_separate_sees_through_gates_inside(clouds, drive):
    """The net of a task, gated: `separate` hands its learner's view on."""
    gated = cl.xdg(0.5)(learning.backprop(MODEL))
    driven = drive(cl.separate(gated), clouds("task"))
    start = driven.begin()
    seen = driven.learner.view(start.memory, start.params, jnp.int32(0))
    inside = gated.view(start.memory.inner, start.params, jnp.int32(0))
    for one, other in zip(*map(jax.tree.leaves, (seen, inside)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(seen[0]["w"], start.params[0]["w"])
    assert cl.separate(learning.backprop(MODEL)).view is None


def test_rows_of_other_tasks_have_no_weight_in_a_separate_net(clouds, drive):
    """So replay around it changes nothing.  Control: around a shared net it does."""
    ends = lambda learner: [stage.progress.params for stage in drive(learner, clouds("task")).run()]
    rule, mixing = learning.backprop(MODEL), cl.replay(2)
    chex.assert_trees_all_close(ends(mixing(cl.separate(rule))), ends(cl.separate(rule)), atol=1e-12)
    shared, alone = ends(mixing(rule))[-1], ends(rule)[-1]
    assert np.abs(shared[0]["w"] - alone[0]["w"]).max() > 1e-4


def test_separate_refuses_a_learner_that_trains_on_all():
    with pytest.raises(ValueError, match="separate trains on one task at a time, got joint"):
        cl.separate(cl.joint(learning.backprop(MODEL)))


NETS = {"static": MODEL, "recurrent": equilibrium(rate_cell(4, 5, 6), implicit(picard(), almeida_pineda()))}


def test_the_readout_is_what_leads_to_the_outputs():
    params = {name: net.init(jax.random.key(1)) for name, net in NETS.items()}
    found = {name: readout(net, params[name], jax.random.key(2)) for name, net in NETS.items()}
    whole = lambda tree: jax.tree.map(lambda leaf: bool(np.all(leaf)), tree)
    none = lambda tree: jax.tree.map(lambda leaf: not np.any(leaf), tree)
    assert whole(found["static"])[1] == {"w": True, "b": True}
    assert none(found["static"])[0] == {"w": True, "b": True}
    assert whole(found["recurrent"]) == {"w": False, "u": False, "b": False, "v": True, "c": True}
    assert none(found["recurrent"]) == {"w": True, "u": True, "b": True, "v": False, "c": False}


def test_a_model_that_shows_nothing_has_no_readout_to_train():
    hidden = Model(MODEL.init, lambda params, x: (x, Info()))
    with pytest.raises(ValueError, match="layers or a cell is needed"):
        readout(hidden, MODEL.init(jax.random.key(0)), jax.random.key(1))


@pytest.mark.parametrize("net", NETS)
def test_random_features_stay_as_they_were_drawn(net, clouds, drive):
    """With momentum: bit for bit, while the readout learns."""
    driven = drive(cl.random_features(learning.backprop(NETS[net])), clouds(), MOMENTUM)
    start = driven.begin()
    end = driven.stage(start, 0).progress.params
    trained = start.memory.trained
    for before, after, free in zip(*map(jax.tree.leaves, (start.params, end, trained)), strict=True):
        assert np.array_equal(before, after) == (not np.any(free))


def test_random_features_stay_where_weights_are_renewed_inside_or_outside(clouds, drive):
    renewed, rule = cl.shrink_and_perturb(0.5, 0.1), learning.backprop(MODEL)
    for learner in (cl.random_features(renewed(rule)), renewed(cl.random_features(rule))):
        driven = drive(learner, clouds())
        start, stages = driven.begin(), driven.run()
        np.testing.assert_array_equal(stages[-1].progress.params[0]["w"], start.params[0]["w"])
        assert not np.array_equal(stages[-1].progress.params[1]["w"], start.params[1]["w"])
    alone = drive(renewed(rule), clouds())
    assert not np.array_equal(alone.run()[-1].progress.params[0]["w"], alone.begin().params[0]["w"])


@pytest.mark.parametrize("isolating", [cl.packnet(), cl.hat(), cl.separate], ids=["packnet", "hat", "separate"])
@pytest.mark.parametrize(
    "mixing", [cl.joint, cl.cumulative, cl.gdumb(2, steps=1)], ids=["joint", "cumulative", "gdumb"]
)
def test_what_isolates_tasks_is_not_trained_on_several_at_once(mixing, isolating):
    with pytest.raises(ValueError, match="rows of several tasks at once, which what is inside cannot"):
        mixing(isolating(learning.backprop(MODEL)))


@pytest.mark.parametrize("gating", [cl.xdg(), cl.hat(), cl.packnet()])
def test_separate_nets_are_not_gated_from_outside(gating):
    with pytest.raises(ValueError, match="must be inside of penalties and rehearsal"):
        gating(cl.separate(learning.backprop(MODEL)))


def test_a_strategy_goes_around_a_learner():
    with pytest.raises(ValueError, match=r"A strategy goes around a learner, got Model. Make one .* backprop\(model\)"):
        cl.ewc(1.0)(MODEL)
    with pytest.raises(ValueError, match="ogd projects a step in all weights"):
        cl.ogd(2)(cl.random_features(learning.backprop(MODEL)))


def test_what_two_strategies_hold_is_held_by_both(clouds, drive):
    """Packnet inside of random features: a weight is free where both leave it free."""
    learner = cl.random_features(cl.packnet()(learning.backprop(MODEL)))
    progress = drive(learner, clouds("task")).begin()
    owner = jax.tree.map(jnp.ones_like, progress.memory.inner.owner)
    packed = progress.memory.inner._replace(owner=(progress.memory.inner.owner[0], owner[1]))
    free = learner.free(progress.memory._replace(inner=packed), progress.params)
    assert [float(leaf.max()) for leaf in jax.tree.leaves(free)] == [0.0] * 4
    free = learner.free(progress.memory, progress.params)
    assert [float(leaf.max()) for leaf in jax.tree.leaves(free)] == [0.0, 0.0, 1.0, 1.0]


def test_what_each_stage_trains_on():
    tasks = jnp.arange(3)
    for strategy, fresh in ((cl.cumulative, False), (cl.joint, True)):
        plan = strategy(learning.backprop(MODEL)).curriculum
        assert [plan.sources(tasks, k).tolist() for k in range(3)] == [
            [True, False, False],
            [True, True, False],
            [True] * 3,
        ]
        assert [plan.rounds(k) for k in range(3)] == [1, 2, 3]
        assert plan.fresh == fresh


def test_shallow_is_softmax_regression_of_the_streams_sizes(clouds):
    """No hidden units: the logits are affine in the input."""
    model = cl.shallow(clouds())
    params = model.init(jax.random.key(0))
    f = lambda x: model.apply(params, x)[0]
    x, y = jax.random.normal(jax.random.key(1), (2, 4))
    assert f(x).shape == (6,)
    np.testing.assert_allclose(f(x + y) - f(y), f(x) - f(0 * x), atol=1e-12)
