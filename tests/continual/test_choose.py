"""Numbers are chosen on training rows that were kept out of training, of the first tasks; test rows play no part."""

from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.models import mlp
from bptoolkit.types import Rows

KEY = jax.random.key(0)
CLOUDS = data.gaussian_classes(jax.random.key(1), 6, (25, 31, 20, 26, 24, 25), 4, spread=0.4, test_rows=8)


@pytest.fixture(scope="module", params=["class", "task", "domain"])
def stream(request):
    return cl.split(CLOUDS, 2, request.param)


def rows_of(view, task):
    return set(np.asarray(view.index[task, : int(view.count[task])]).tolist())


def test_validation_and_training_rows_together_are_the_training_rows_and_share_none(stream):
    whole, held = stream.draw(jax.random.key(0)), cl.held_out(stream, every=5).draw(jax.random.key(0))
    for task in range(3):
        trained, tested = rows_of(held.train, task), rows_of(held.test, task)
        assert not trained & tested
        assert trained | tested == rows_of(whole.train, task)
        assert len(tested) == -(-int(whole.train.count[task]) // 5)


def test_every_class_of_a_task_is_held_out_in_proportion(stream):
    held = cl.held_out(stream, every=5).draw(jax.random.key(0))
    for task in range(3):
        labels = np.asarray(CLOUDS.train.y)[sorted(rows_of(held.test, task))]
        found, counts = np.unique(labels, return_counts=True)
        assert len(found) == 2
        wanted = np.bincount(np.asarray(CLOUDS.train.y))[found] / 5
        assert np.abs(counts - wanted).max() <= 1


def test_the_first_tasks_are_those_of_the_whole_stream(stream):
    whole, first = stream.draw(jax.random.key(0)), cl.held_out(stream, every=5, tasks=2).draw(jax.random.key(0))
    for name in ("output", "slot", "active"):
        np.testing.assert_array_equal(getattr(first, name), getattr(whole, name)[:2], err_msg=name)
    assert rows_of(first.train, 1) < rows_of(whole.train, 1)


def test_transformed_streams_are_held_out_too():
    for whole in (cl.permuted(CLOUDS, 3), cl.label_shuffled(CLOUDS, 3)):
        held = cl.held_out(whole, every=5, tasks=2)
        assert (held.tasks, held.rows_max + held.test_rows_max) == (2, whole.rows_max)
        one, other = whole.draw(jax.random.key(0)), held.draw(jax.random.key(0))
        np.testing.assert_array_equal(other.output, one.output[:2])
        if one.order is not None:
            np.testing.assert_array_equal(other.order, one.order[:2])


def test_a_row_that_one_task_keeps_out_is_in_no_other_tasks_training():
    """Each task has 60 of the same 151 rows, and shows them in another order."""
    held = cl.held_out(cl.online(cl.permuted(CLOUDS, 3), 60), every=5)
    found = jax.jit(held.draw)(jax.random.key(0))
    trained, tested = ([rows_of(view, task) for task in range(3)] for view in found[:2])
    assert [len(rows) for rows in tested] == [12] * 3
    assert not set.union(*trained) & set.union(*tested)
    assert all(len(rows) == count > 36 for rows, count in zip(trained, found.train.count.tolist(), strict=True))
    for index, count in zip(np.asarray(found.train.index), found.train.count.tolist(), strict=True):
        assert (index[count:] == index[count - 1]).all()


def experiment(stream):
    learner = lambda hyper: cl.l2_anchor(hyper["strength"])(learning.backprop(mlp(4, 5, 6)))
    optimizer = lambda hyper: optax.sgd(hyper["rate"])
    return cl.Experiment(stream, learner, optimizer, steps=6, batch=8, hyper={"strength": 0.0, "rate": 9.0})


GRID = {"rate": [1e-6, 0.3], "strength": [0.0, 0.1]}


@pytest.fixture(scope="module")
def chosen():
    return cl.choose(experiment(cl.split(CLOUDS, 2, "task")), GRID, KEY, seeds=[7, 9], tasks=2, every=5)


def test_the_best_point_on_validation_rows_is_chosen(chosen):
    means = {point: float(values.mean()) for point, values in chosen.scores.items()}
    assert len(means) == 4
    assert means[tuple(chosen.values.values())] == max(means.values())
    assert chosen.values["rate"] == 0.3
    assert "2 seeds on validation rows, one in 5 of the training rows of the first 2 tasks" in chosen.how


def test_the_scores_are_those_of_runs_on_the_rows_held_out(chosen):
    held = experiment(cl.held_out(cl.split(CLOUDS, 2, "task"), every=5, tasks=2))
    alone = cl.run(replace(held, hyper={"rate": 0.3, "strength": 0.1}), KEY, seeds=[7, 9])
    np.testing.assert_array_equal(chosen.scores[0.3, 0.1], cl.average_accuracy(alone))


def test_test_rows_play_no_part(chosen):
    """Test rows of nonsense change no bit of the choice; training rows of nonsense do."""
    spoiled = cl.split(CLOUDS._replace(test=Rows(CLOUDS.test.x * -7.0, CLOUDS.test.y)), 2, "task")
    again = cl.choose(experiment(spoiled), GRID, KEY, seeds=[7, 9], tasks=2, every=5)
    for point, values in chosen.scores.items():
        np.testing.assert_array_equal(again.scores[point], values)
    other = cl.split(CLOUDS._replace(train=CLOUDS.train._replace(x=CLOUDS.train.x[::-1])), 2, "task")
    changed = cl.choose(experiment(other), GRID, KEY, seeds=[7, 9], tasks=2, every=5)
    assert any((changed.scores[point] != values).any() for point, values in chosen.scores.items())


def test_a_point_at_which_a_seed_diverges_is_not_chosen():
    wild = {"rate": [float("inf"), 0.3], "strength": [0.0]}
    found = cl.choose(experiment(cl.split(CLOUDS, 2, "task")), wild, KEY, seeds=[7, 9], tasks=2, every=5)
    assert found.values["rate"] == 0.3
    assert np.isnan(found.scores[float("inf"), 0.0]).all()
    with pytest.raises(ValueError, match="no seed diverges, got none"):
        cl.choose(experiment(cl.split(CLOUDS, 2)), {"rate": [float("inf")]}, KEY, seeds=[7], tasks=2, every=5)


def test_one_seed_that_diverges_in_one_task_is_enough(monkeypatch):
    """Where it scores best in all that is left."""
    told = lambda finite, score: SimpleNamespace(finite=np.array(finite), score=np.array(score))
    good, lost = told([[True, True], [True, True]], [0.1, 0.2]), told([[True, False], [True, True]], [0.9, 0.9])
    made = lambda *_, **__: {(1e-6,): good, (0.3,): lost}
    monkeypatch.setattr(import_module("bptoolkit.continual.choose"), "run_grid", made)
    tried = experiment(cl.split(CLOUDS, 2, "task"))
    found = cl.choose(tried, {"rate": [1e-6, 0.3]}, KEY, seeds=[7, 9], tasks=2, score=lambda result: result.score)
    assert found.values == {"rate": 1e-6}
    np.testing.assert_array_equal(found.scores[0.3,], [np.nan, 0.9])


def test_a_task_of_one_row_has_none_to_keep_out():
    lone = cl.split(data.gaussian_classes(jax.random.key(1), 3, (1, 6, 5), 4), 1)
    with pytest.raises(ValueError, match="Each task needs 2 rows, one to train on and one to keep out, got one of 1"):
        cl.held_out(lone, every=2)


def test_tasks_that_keep_out_each_others_rows_have_none_to_train_on():
    """Two rows in all, and twenty tasks that have both."""
    pair = cl.permuted(data.gaussian_classes(jax.random.key(1), 2, 1, 4), 20)
    with pytest.raises(ValueError, match="one whose rows are all kept out"):
        cl.held_out(cl.online(pair, 2), every=2)


def test_what_cannot_be_held_out_is_refused(stream):
    with pytest.raises(ValueError, match=r"tasks must be in 1 … 3.*got 4"):
        cl.held_out(stream, tasks=4)
    for every in (1, 1000):
        with pytest.raises(ValueError, match=r"every must be in 2 … \d+.*got 1"):
            cl.held_out(stream, every=every)


def test_a_number_that_nothing_reads_is_not_chosen(stream):
    rule = learning.backprop(mlp(4, 3, stream.outputs))
    experiment = cl.Experiment(stream, cl.ewc(1.0)(rule), optax.sgd(0.1), 2, batch=4, hyper={"strength": 1.0})
    with pytest.raises(ValueError, match="Nothing reads strength"):
        cl.choose(experiment, {"strength": [1.0, 10.0]}, jax.random.key(0))
    read = replace(experiment, learner=lambda hyper: cl.ewc(hyper["strength"])(rule))
    with pytest.raises(ValueError, match="The score must be a number, got NaN everywhere"):
        cl.choose(read, {"strength": [1.0]}, jax.random.key(0), 2, tasks=1, score=cl.backward_transfer)
