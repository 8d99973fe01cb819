"""The runner: what it computes against loops written out, and that a seed's result is its own."""

import dataclasses
import importlib
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.continual import evaluate
from bptoolkit.continual.layout import Layout
from bptoolkit.continual.programs import _binned, curve_points
from bptoolkit.continual.walk import _rebinned
from bptoolkit.fixed_point import almeida_pineda, implicit, picard
from bptoolkit.learning.fit import Curves, Progress
from bptoolkit.models import equilibrium, mlp, rate_cell

MODEL = mlp(4, 5, 6)
RATE, MOMENTUM, STEPS = 0.2, 0.8, 8
ROWS = (5, 7, 2, 6, 4, 5)
TASKS = [(0, 1), (2, 3), (4, 5)]  # as `shuffle=False` deals them
STACKED, IN_TURN = Layout(1, True), Layout(1, False)


@pytest.fixture(scope="module")
def clouds():
    return data.gaussian_classes(jax.random.key(1), 6, ROWS, 4, spread=0.7, test_rows=8)


def experiment(clouds, model=MODEL, learner=None, **changes):
    options = {"steps": STEPS, "batch": 4} | changes
    learner = learning.backprop(model) if learner is None else learner
    return cl.Experiment(cl.split(clouds, 2), learner, optax.sgd(RATE, MOMENTUM), **options)


@pytest.fixture(scope="module")
def recorded(clouds):
    """Four seeds, and what the hooks saw."""
    states, moments, progress = [], [], []
    result = cl.run(
        experiment(clouds),
        jax.random.key(0),
        seeds=4,
        on_task=lambda moment, state: (moments.append(moment), states.append(state)),
        on_progress=lambda moment, state: progress.append(moment),
        layout=STACKED,
    )
    return result, states, moments, progress


def same(one, other, atol=0.0):
    """All that training decides is alike; cost is time."""
    for name in ("accuracy", "train_accuracy", "untrained", "untrained_train", "finite"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    chex.assert_trees_all_close(one.params, other.params, atol=atol, rtol=0)
    chex.assert_trees_all_close(one.curves.loss, other.curves.loss, atol=atol, rtol=0)


def weights(result, place):
    return jax.tree.map(lambda leaf: leaf[place], result.params)


def test_the_same_command_twice_is_bit_identical(clouds, recorded):
    same(cl.run(experiment(clouds), jax.random.key(0), seeds=4, layout=STACKED), recorded[0])


def test_a_seed_alone_is_the_seed_in_a_batch(clouds, recorded):
    alone, batch = cl.run(experiment(clouds), jax.random.key(0), seeds=[2]), recorded[0]
    assert alone.seeds == (2,)
    np.testing.assert_array_equal(alone.accuracy[0], batch.accuracy[2])
    np.testing.assert_array_equal(alone.untrained[0], batch.untrained[2])
    chex.assert_trees_all_close(weights(alone, 0), weights(batch, 2), atol=1e-9)


def test_seeds_differ(recorded):
    params = recorded[0].params[0]["w"]
    assert all(np.abs(params[a] - params[b]).max() > 0.01 for a in range(4) for b in range(a))


def test_stacked_and_in_turn_are_two_ways_to_one_result(clouds, recorded):
    in_turn = cl.run(experiment(clouds), jax.random.key(0), seeds=4, layout=IN_TURN)
    same(in_turn, recorded[0], atol=1e-9)
    assert in_turn.cost.layout != recorded[0].cost.layout


def test_a_settling_seed_alone_is_the_seed_in_a_batch(clouds):
    """Stacked with another, and in turn by itself."""
    recurrent = experiment(clouds, equilibrium(rate_cell(4, 5, 6)), steps=4)
    both = cl.run(recurrent, jax.random.key(0), seeds=2, layout=STACKED)
    alone = cl.run(recurrent, jax.random.key(0), seeds=[1])
    np.testing.assert_array_equal(alone.accuracy[0], both.accuracy[1])
    chex.assert_trees_all_close(weights(alone, 0), weights(both, 1), atol=1e-9)
    assert (both.unconverged == 0).all()
    assert (both.curves.settling_steps > 1).all()


@pytest.mark.parametrize("done", [1, 2])
def test_a_run_taken_up_again_ends_the_same(clouds, recorded, done):
    result, states, *_ = recorded
    resumed = cl.run(experiment(clouds), jax.random.key(0), seeds=4, state=states[done - 1], layout=STACKED)
    same(resumed, result)


@pytest.mark.parametrize("strategy", [cl.naive, cl.joint], ids=["naive", "joint"])
def test_a_run_taken_up_within_a_task_ends_the_same(clouds, monkeypatch, strategy):
    """From plain arrays without their structure, as they come from a disk.  Joint starts each task from new weights."""
    monkeypatch.setattr(importlib.import_module("bptoolkit.continual.walk"), "CHUNK", 4)
    states, whole = [], experiment(clouds, learner=strategy(learning.backprop(MODEL)))
    start = partial(cl.run, whole, jax.random.key(0), seeds=2, layout=STACKED)
    result = start(on_progress=lambda moment, state: states.append(state))
    assert [len(state.begun) for state in states[:3]] == [1, 2, 1]
    for state in (states[0], states[3], states[-2]):
        bare = state._replace(progress=[np.asarray(leaf) for leaf in jax.tree.leaves(state.progress)])
        same(start(state=bare), result)


def test_a_state_goes_on_in_the_layout_it_began_with(clouds, recorded):
    result, states, *_ = recorded
    assert states[0].layout == STACKED
    one = cl.run(experiment(clouds), jax.random.key(0), seeds=4, state=states[0]._replace(layout=IN_TURN))
    assert one.cost.layout == str(IN_TURN)
    same(one, result, atol=1e-9)


def test_the_state_of_another_run_is_refused(clouds, recorded):
    _, states, *_ = recorded
    fewer = jax.tree.map(lambda leaf: leaf[:3], states[0].progress)
    with pytest.raises(ValueError, match=r"belongs to another run: .*for each of 4 nets, the state .* for 3"):
        cl.run(experiment(clouds), jax.random.key(0), seeds=4, state=states[0]._replace(progress=fewer))
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), states[0].progress)
    with pytest.raises(ValueError, match=r"carries float64\(5,\), .*, the state float32\(5,\)"):
        cl.run(experiment(clouds), jax.random.key(0), seeds=4, state=states[0]._replace(progress=narrow))


def test_hooks_tell_where_the_run_is(recorded):
    result, states, moments, progress = recorded
    assert [(m.task, m.tasks, m.step, m.steps) for m in moments] == [(k, 3, k * STEPS, 3 * STEPS) for k in (1, 2, 3)]
    assert [(m.task, m.step) for m in progress] == [(k, (k + 1) * STEPS) for k in range(3)]
    for k, moment in enumerate(moments):
        np.testing.assert_array_equal(moment.accuracy, result.accuracy[:, k])
        assert moment.loss == pytest.approx(result.curves.loss[:, k, -1].mean())
    chex.assert_trees_all_equal(states[-1].progress.params, result.params)


def test_shapes_and_cost(recorded):
    """4·5 + 5 + 5·6 + 6 weights; 4·5 + 5·6 products and as many sums, and a little for biases and ReLU."""
    result = recorded[0]
    assert result.accuracy.shape == result.train_accuracy.shape == (4, 3, 3)
    assert result.untrained.shape == result.untrained_train.shape == result.finite.shape == (4, 3)
    assert result.curves.loss.shape == (4, 3, STEPS)
    assert np.isnan(result.unconverged).all()
    assert result.finite.all()
    assert result.cost.parameters == 61
    assert result.cost.steps == 3 * STEPS
    assert 100 <= result.cost.flops <= 100 + 3 * 61
    assert result.cost.memory_bytes == 0


def test_the_memory_of_a_strategy_is_told(clouds):
    """Two rows of each of six classes: at least their four numbers, in float64 as the tests are."""
    learner = cl.replay(2)(learning.backprop(MODEL))
    result = cl.run(experiment(clouds, learner=learner, steps=1), jax.random.key(0), seeds=1, layout=STACKED)
    assert 12 * 4 * 8 <= result.cost.memory_bytes < 12 * 4 * 8 * 10


def at(params):
    """The model that starts there whatever the key."""
    return MODEL._replace(init=lambda key: params)


def accuracies(params, rows, classes=TASKS):
    """By a plain loop: the share of rows whose largest of all six logits is their class, task by task."""
    (w, b), (v, c) = ((np.asarray(p["w"]), np.asarray(p["b"])) for p in params)
    hits = {task: [] for task in classes}
    for x, y in zip(np.asarray(rows.x), np.asarray(rows.y), strict=True):
        for task in classes:
            if y in task:
                hits[task].append(np.argmax(np.maximum(x @ w + b, 0) @ v + c) == y)
    return [np.mean(hits[task]) for task in classes]


def descend(params, rows, classes, steps, velocity):
    """Full batch over the rows of these classes, Δw(t) = −ε ∂E/∂w + α Δw(t − 1)."""
    own = np.isin(np.asarray(rows.y), classes)
    x, y = rows.x[own], rows.y[own]

    def error(params):
        logits = jnp.maximum(x @ params[0]["w"] + params[0]["b"], 0) @ params[1]["w"] + params[1]["b"]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])

    gradient = jax.jit(jax.grad(error))
    for _ in range(steps):
        velocity = jax.tree.map(lambda g, v: -RATE * g + MOMENTUM * v, gradient(params), velocity)
        params = jax.tree.map(jnp.add, params, velocity)
    return params, velocity


def in_order(clouds, learner, **changes):
    stream = cl.split(clouds, 2, shuffle=False)
    run = cl.Experiment(stream, learner, optax.sgd(RATE, MOMENTUM), steps=STEPS, **changes)
    return cl.run(run, jax.random.key(0), seeds=1)


@pytest.mark.parametrize("reset", [False, True], ids=["velocity kept", "velocity reset"])
def test_full_batch_task_after_task_is_gradient_descent_by_hand(clouds, reset):
    """Weights and all accuracies, on ragged tasks of 12, 8 and 9 rows; the untrained net's too."""
    start = MODEL.init(jax.random.key(7))
    result = in_order(clouds, learning.backprop(at(start)), batch=None, reset_optimizer=reset)
    np.testing.assert_allclose(result.untrained[0], accuracies(start, clouds.test))
    np.testing.assert_allclose(result.untrained_train[0], accuracies(start, clouds.train))
    still = jax.tree.map(jnp.zeros_like, start)
    params, velocity = start, still
    for k, classes in enumerate(TASKS):
        params, velocity = descend(params, clouds.train, classes, STEPS, still if reset else velocity)
        np.testing.assert_allclose(result.accuracy[0, k], accuracies(params, clouds.test))
        np.testing.assert_allclose(result.train_accuracy[0, k], accuracies(params, clouds.train))
    chex.assert_trees_all_close(weights(result, 0), params, atol=1e-11)


def test_rows_drawn_with_replacement_are_the_tasks_own():
    """Four draws from a task of one row are that row, so the gradient is that of the full batch."""
    single = data.gaussian_classes(jax.random.key(1), 2, 1, 4)
    one = lambda **options: cl.run(
        cl.Experiment(cl.split(single, 1), learning.backprop(mlp(4, 5, 2)), optax.sgd(RATE), steps=STEPS, **options),
        jax.random.key(0),
        seeds=1,
    )
    same(one(batch=4, replacement=True), one(batch=None), atol=1e-12)


def test_joint_trains_a_new_net_on_all_tasks_so_far(clouds):
    """Row k: from the first weights, k times the steps, over the rows of tasks 1 … k; 29 rows in all, batch 30."""
    start = MODEL.init(jax.random.key(7))
    result = in_order(clouds, cl.joint(learning.backprop(at(start))), batch=30)
    still = jax.tree.map(jnp.zeros_like, start)
    for k in range(3):
        params, _ = descend(start, clouds.train, sum(TASKS[: k + 1], ()), (k + 1) * STEPS, still)
        np.testing.assert_allclose(result.accuracy[0, k], accuracies(params, clouds.test))
    chex.assert_trees_all_close(weights(result, 0), params, atol=1e-11)
    assert result.cost.steps == (1 + 2 + 3) * STEPS


def test_cumulative_trains_the_same_net_on_over_all_tasks_so_far(clouds):
    """Stage k: from where it is, its velocity too, k times the steps over the rows of tasks 1 … k.

    Negative control: anew from the first weights, as `joint` would, it ends elsewhere.
    """
    start = MODEL.init(jax.random.key(7))
    result = in_order(clouds, cl.cumulative(learning.backprop(at(start))), batch=None)
    still = jax.tree.map(jnp.zeros_like, start)
    params, velocity = start, still
    for k in range(3):
        params, velocity = descend(params, clouds.train, sum(TASKS[: k + 1], ()), (k + 1) * STEPS, velocity)
        np.testing.assert_allclose(result.accuracy[0, k], accuracies(params, clouds.test))
    chex.assert_trees_all_close(weights(result, 0), params, atol=1e-11)
    anew, _ = descend(start, clouds.train, sum(TASKS, ()), 3 * STEPS, still)
    assert max(jnp.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (anew, params)), strict=True)) > 0.01


def test_accuracies_are_those_of_the_weights_that_come_out(clouds, recorded):
    """With classes dealt by the seed's key: tasks are read off the untrained rows of `draw` through the data."""
    result, stream = recorded[0], cl.split(clouds, 2)
    for number, seed in enumerate(result.seeds):
        key = jax.random.split(jax.random.fold_in(jax.random.key(0), seed), 4)[0]
        index, count = stream.draw(key).train
        tasks = [
            tuple(set(np.asarray(clouds.train.y)[np.asarray(i[:n])].tolist()))
            for i, n in zip(index, count, strict=True)
        ]
        params = weights(result, number)
        np.testing.assert_allclose(result.accuracy[number, -1], accuracies(params, clouds.test, tasks))
        np.testing.assert_allclose(result.train_accuracy[number, -1], accuracies(params, clouds.train, tasks))


def test_training_rows_are_looked_at_evenly_spread():
    """Eight of the 40 rows of a task, as many as there are test rows: each fifth, so that both classes are met."""
    clouds = data.gaussian_classes(jax.random.key(1), 4, 20, 4, spread=0.7, test_rows=4)
    stream, model = cl.split(clouds, 2), mlp(4, 5, 4)
    indices, params = stream.draw(jax.random.key(0)), model.init(jax.random.key(1))
    asked = evaluate.Asked(learning.backprop(model), stream, STACKED, indices, Progress(params, (), ()))
    found = jax.jit(lambda rows: evaluate.accuracies(asked, rows, indices.train))(clouds.train)
    logits = np.asarray(jax.vmap(model.apply, (None, 0))(params, clouds.train.x)[0])
    right = logits.argmax(1) == np.asarray(clouds.train.y)
    np.testing.assert_allclose(found, right[indices.train.index[:, ::5]].mean(1))
    assert (found != right[indices.train.index[:, :8]].mean(1)).any()


def test_a_seed_that_diverges_is_flagged_and_leaves_the_others_alone(clouds, recorded):
    """Seeds whose first weight is above its median start with infinite weights; the rest are bit-identical."""
    healthy = recorded[0]
    sick_if = lambda params: params[0]["b"][0] > 0

    def init(key):
        params = MODEL.init(key)
        return jax.tree.map(lambda p: jnp.where(sick_if(params), jnp.inf, p), params)

    result = cl.run(experiment(clouds, MODEL._replace(init=init)), jax.random.key(0), seeds=4, layout=STACKED)
    sick = ~result.finite[:, 0]
    assert 0 < sick.sum() < 4
    np.testing.assert_array_equal(result.finite, np.tile(~sick[:, None], 3))
    np.testing.assert_array_equal(result.accuracy[~sick], healthy.accuracy[~sick])
    np.testing.assert_array_equal(result.accuracy[sick], 0)  # a NaN is never right
    well = lambda r: jax.tree.map(lambda p: p[~sick], r.params)
    chex.assert_trees_all_equal(well(result), well(healthy))


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "written in"])
def test_another_hyper_parameter_compiles_nothing(clouds, empty_cache, traced):
    """The compilation cache has no new entry after it.  Negative control: a rate that is written in adds some."""
    learner, stream = learning.backprop(MODEL), cl.split(clouds, 2)

    def entries_after(rate):
        optimizer = (lambda hyper: optax.sgd(hyper["rate"])) if traced else optax.sgd(rate)
        hyper = {"rate": rate} if traced else {}
        cl.run(cl.Experiment(stream, learner, optimizer, STEPS, 4, hyper=hyper), jax.random.key(0), seeds=2)
        return {entry.name for entry in empty_cache.glob("*-cache")}

    one, another = entries_after(0.1), entries_after(0.3)
    assert len(one) > 0
    assert (one == another) is traced


@pytest.mark.parametrize(
    ("seeds", "sentence"),
    [
        (0, "seeds must be a positive number, .* got 0"),
        (-1, "seeds must be a positive number, .* got -1"),
        ([], r"seeds must be .* got \[\]"),
        ([1, 2, 1], r"seeds must be .* different whole numbers from 0, got \[1, 2, 1\]"),
        ([-1], r"seeds must be .* got \[-1\]"),
    ],
)
def test_seeds_that_are_none_or_the_same_are_refused(clouds, seeds, sentence):
    with pytest.raises(ValueError, match=sentence):
        cl.run(experiment(clouds), jax.random.key(0), seeds)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (mlp(4, 5, 2), r"needs a model with 6 outputs, got logits of shape \(2,\)"),
        (mlp(3, 6), r"cannot read examples of shape \(4,\)"),
        (equilibrium(rate_cell(4, 5, 3)), r"needs a model with 6 outputs, got logits of shape \(3,\)"),
    ],
)
def test_a_model_that_does_not_fit_the_stream_is_refused(clouds, model, sentence):
    with pytest.raises(ValueError, match=sentence):
        cl.run(experiment(clouds, model), jax.random.key(0), seeds=1)


@pytest.mark.parametrize("optimizer", [1e-3, None, lambda hyper: 1e-3])
def test_an_optimiser_that_is_none_is_refused(clouds, optimizer):
    wrong = dataclasses.replace(experiment(clouds), optimizer=optimizer)
    with pytest.raises(ValueError, match=r"optimizer must be one of optax, .*, got (0.001|None)"):
        cl.run(wrong, jax.random.key(0), seeds=1)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 0}, {"batch": 2.5}])
def test_a_budget_of_nothing_is_refused(clouds, change):
    with pytest.raises(ValueError, match=r"must be (at least 1|a whole number), got"):
        experiment(clouds, **change)


def test_tests_within_a_task_are_those_of_shorter_runs(clouds, monkeypatch):
    """Every 2 of 8 updates, two tests a call: the first is that of a run of 2, the last of each task that of its end; a
    run taken up within a task has them all.  Negative control: within is not merely the ends repeated."""
    monkeypatch.setattr(importlib.import_module("bptoolkit.continual.walk"), "CHUNK", 4)
    states = []
    options = {"steps": 8, "evaluate_every": 2}
    keep = lambda moment, state: states.append(state)
    result = cl.run(experiment(clouds, **options), jax.random.key(0), seeds=2, layout=STACKED, on_progress=keep)
    assert result.within.shape == (2, 12, 3)
    assert result.ends == (3, 7, 11)
    np.testing.assert_array_equal(result.within[:, list(result.ends)], result.accuracy)
    for updates, place in ((2, 0), (4, 1), (6, 2)):
        short = cl.run(experiment(clouds, steps=updates), jax.random.key(0), seeds=2, layout=STACKED)
        np.testing.assert_array_equal(result.within[:, place], short.accuracy[:, 0])
    assert (result.within[:, :3] != result.accuracy[:, :1]).any()
    assert short.within is None
    assert np.isnan(cl.stability_gap(short)).all()
    np.testing.assert_array_equal(cl.stability_gap(result), cl.stability_gap(result.within, result.ends))
    assert (cl.minimum_accuracy(result) <= cl.minimum_accuracy(result.accuracy)).all()
    assert len(states) == 6
    again = cl.run(experiment(clouds, **options), jax.random.key(0), seeds=2, layout=STACKED, state=states[2])
    np.testing.assert_array_equal(again.within, result.within)


def test_tests_within_tasks_change_nothing_else(clouds, recorded):
    same(cl.run(experiment(clouds, evaluate_every=1), jax.random.key(0), seeds=4, layout=STACKED), recorded[0], 1e-6)


@pytest.mark.parametrize("every", [0, 3, 16])
def test_tests_within_a_task_fit_its_steps(clouds, every):
    with pytest.raises(ValueError, match=r"evaluate_every must (divide steps, 8, got|be at least 1, got 0)"):
        experiment(clouds, evaluate_every=every)


def test_plasticity_after_every_task_is_that_of_the_weights_then(clouds, recorded):
    """On all test rows, by `cl.plasticity`; another layout gives the same.  Negative control: it changes from task to
    task."""
    states = []
    probed = partial(cl.run, experiment(clouds, probe=len(clouds.test.y)), jax.random.key(0), 2)
    result = probed(layout=STACKED, on_task=lambda moment, state: states.append(state))
    x = jnp.asarray(clouds.test.x)
    of_seeds = jax.vmap(lambda params: cl.plasticity(MODEL, params, x))
    for task, state in enumerate(states, start=1):
        by_hand = of_seeds(state.progress.params)
        then = cl.Plasticity(*(values[:, task] for values in result.plasticity))
        chex.assert_trees_all_close(then, by_hand, rtol=1e-4)
    assert result.plasticity.dormant.shape == (2, 4)
    assert (np.diff(result.plasticity.weight_norm) != 0).all()
    chex.assert_trees_all_close(probed(layout=IN_TURN).plasticity, result.plasticity, rtol=1e-4)
    chex.assert_trees_all_close(probed(layout=STACKED, state=states[0]).plasticity, result.plasticity, rtol=1e-4)
    assert recorded[0].plasticity is None


def test_a_probe_is_spread_evenly_over_all_tasks(clouds):
    """Ten of 48 test rows: rows ⌊n · 48/10⌋ of the tasks laid end to end.  Negative control: the first ten are not."""
    made = cl.Experiment(cl.split(clouds, 2, shuffle=False), learning.backprop(MODEL), optax.sgd(RATE), 1, 4, probe=10)
    found = cl.run(made, jax.random.key(0), 1, layout=STACKED).plasticity.effective_rank[0, -1]
    params = jax.tree.map(lambda leaf: leaf[0], cl.run(made, jax.random.key(0), 1, layout=STACKED).params)
    in_order = jnp.asarray(np.concatenate([np.flatnonzero(np.asarray(clouds.test.y) == c) for c in range(6)]))
    rank = lambda place: cl.plasticity(MODEL, params, clouds.test.x[in_order[place]]).effective_rank
    np.testing.assert_allclose(found, rank(jnp.arange(10) * 48 // 10), rtol=1e-4)
    assert abs(found - rank(jnp.arange(10))) > 1e-3


@pytest.mark.parametrize(("steps", "points"), [(200, 20), (250, 10), (39, 13), (23, 1), (1, 1)])
def test_a_curve_leaves_no_update_out(steps, points):
    """Each point is the mean of as many updates, in their order: no share of settlings that failed is lost."""
    curve = jnp.square(jnp.arange(steps, dtype=float))
    assert curve_points(steps) == points
    found = _binned(curve, points)
    assert found.shape == (points,)
    np.testing.assert_allclose(found, [part.mean() for part in np.split(np.asarray(curve), points)], rtol=1e-6)


def test_the_curve_of_a_stage_of_several_calls_is_in_the_order_of_its_updates():
    """Of 1, 2, 3, 4 in two calls, two points: 1.5 and 3.5."""
    calls = [Curves(*[np.array([piece])] * len(Curves._fields)) for piece in ([1.0, 2.0], [3.0, 4.0])]
    for values in _rebinned(calls):
        np.testing.assert_array_equal(values, [[1.5, 3.5]])


def test_every_task_starts_trains_and_ends_by_keys_of_its_own(clouds):
    """What a learner draws at the nine occasions: no two numbers alike."""
    rule, states = learning.backprop(MODEL), []
    note = lambda memory, place, key: memory.at[place].set(jax.random.bits(key, (), jnp.uint32))
    drawing = rule._replace(
        init=lambda params, spec, key: jnp.zeros(3, jnp.uint32),
        start_task=lambda memory, params, task, key: (params, note(memory, 0, key)),
        gradient=lambda memory, params, batch, key: (*rule.gradient((), params, batch, key)[:2], note(memory, 1, key)),
        end_task=lambda memory, params, task, key: (params, note(memory, 2, key)),
    )
    made = experiment(clouds, learner=drawing, steps=1)
    cl.run(made, jax.random.key(0), seeds=1, layout=STACKED, on_task=lambda moment, state: states.append(state))
    assert len({int(number) for state in states for number in state.progress.memory[0]}) == 9


def test_the_plasticity_of_a_seed_that_diverged_is_unknown(clouds):
    wild = cl.Experiment(cl.split(clouds, 2), learning.backprop(MODEL), optax.sgd(1e300), 4, 4, probe=10)
    found = cl.run(wild, jax.random.key(0), 1).plasticity
    for figure in found:
        assert np.isfinite(figure[:, 0]).all()
        assert not np.isfinite(figure[:, -1]).any()
    assert np.isnan(found.effective_rank[:, -1]).all()


def test_plasticity_of_a_net_that_settles_is_of_its_settled_states(clouds):
    net = equilibrium(rate_cell(4, 5, 6), implicit(picard(), almeida_pineda()))
    learner = learning.backprop(net)
    result = cl.run(experiment(clouds, learner=learner, steps=2, probe=48), jax.random.key(0), 1, layout=STACKED)
    states = jax.vmap(lambda x: net.cell.settle(jax.tree.map(lambda leaf: leaf[0], result.params), x).value)
    features = states(jnp.asarray(clouds.test.x))
    np.testing.assert_allclose(result.plasticity.effective_rank[0, -1], cl.effective_rank(features), rtol=1e-3)


def test_a_probe_needs_rows_and_units_to_look_at(clouds):
    with pytest.raises(ValueError, match="probe must be at least 1, got 0"):
        experiment(clouds, probe=0)
    with pytest.raises(ValueError, match="probe must be 1 … 10,000 rows, or None, got 10001"):
        experiment(clouds, probe=10_001)
    with pytest.raises(ValueError, match="probe needs a model with hidden units, got one with none"):
        experiment(clouds, mlp(4, 6), probe=4).check()
    hidden = MODEL._replace(layers=None)
    with pytest.raises(ValueError, match="probe needs a model that shows its hidden units"):
        experiment(clouds, hidden, probe=4).check()
