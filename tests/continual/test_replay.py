"""Replay: what the buffer holds, and how its rows weigh against the current ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.fixed_point import Stop, almeida_pineda, implicit, picard
from bptoolkit.models import equilibrium, mlp, rate_cell

ROWS = (5, 7, 2, 6, 4, 5)
TIGHT = Stop(rtol=1e-12)
RELAX = implicit(picard(), almeida_pineda(stop=TIGHT), TIGHT)
NETS = {"static": mlp(4, 5, 6), "recurrent": equilibrium(rate_cell(4, 5, 6), RELAX)}
every_net = pytest.mark.parametrize("model", NETS.values(), ids=NETS)


@pytest.fixture(scope="module")
def stream():
    return cl.split(data.gaussian_classes(jax.random.key(1), 6, ROWS, 4, test_rows=2), 2)


def kept_rows(memory):
    """The stored rows as (task, index, target, x), those with weight only."""
    rows = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), memory.rows)
    return jax.tree.map(lambda leaf: leaf[rows.weight > 0], rows)


@pytest.mark.parametrize("per_class", [1, 2])
def test_the_buffer_holds_so_many_rows_of_every_class_seen(stream, per_class, after_tasks):
    _, memory, indices = after_tasks(stream, cl.replay(per_class)(learning.backprop(NETS["static"])), 2)
    kept = kept_rows(memory)
    y = np.asarray(stream.data.train.y)[kept.index]
    dealt = [set(np.asarray(stream.data.train.y)[np.asarray(indices.train.index[t])].tolist()) for t in range(3)]
    assert memory.tasks == 2
    assert {c: int((y == c).sum()) for c in dealt[0] | dealt[1]} == dict.fromkeys(dealt[0] | dealt[1], per_class)
    assert len(np.unique(kept.index)) == len(kept.index) == 4 * per_class
    assert all(c in dealt[task] for c, task in zip(y, kept.task, strict=True))


def test_stored_rows_are_the_rows_of_the_data(stream, after_tasks):
    _, memory, _ = after_tasks(stream, cl.replay(2)(learning.backprop(NETS["static"])), 3)
    kept = kept_rows(memory)
    np.testing.assert_array_equal(kept.x, np.asarray(stream.data.train.x)[kept.index])
    np.testing.assert_array_equal(kept.target.argmax(-1), np.asarray(stream.data.train.y)[kept.index])
    assert (kept.weight == 1).all()
    assert (kept.temperature == 1).all()


@pytest.mark.parametrize("per_class", [6, 40])
def test_a_class_with_too_few_rows_gives_all_it_has(stream, per_class, after_tasks):
    """40 is more than a whole task has."""
    _, memory, _ = after_tasks(stream, cl.replay(per_class)(learning.backprop(NETS["static"])), 3)
    kept = kept_rows(memory)
    found = np.bincount(np.asarray(stream.data.train.y)[kept.index], minlength=6)
    np.testing.assert_array_equal(found, np.minimum(ROWS, per_class))
    assert len(np.unique(kept.index)) == len(kept.index)


def test_which_rows_are_kept_is_drawn_from_the_key(stream, after_tasks):
    learner = cl.replay(1)(learning.backprop(NETS["static"]))
    kept = {tuple(kept_rows(after_tasks(stream, learner, 3, seed)[1]).index) for seed in range(4)}
    assert len(kept) == 4


def replaying(learner):
    """The learner, whose gradient is told which rows reach the learning rule."""
    seen = []

    def gradient(memory, params, batch, key):
        seen.append(batch)
        return learner.gradient(memory, params, batch, key)

    return learner._replace(gradient=gradient), seen


@every_net
@pytest.mark.parametrize("done", [1, 2])
def test_the_gradient_is_a_kth_of_the_current_and_the_rest_of_the_replayed(
    stream, model, done, after_tasks, rows_of_task
):
    """In task k = done + 1: 1/k · ∇(mean of the current rows) + (1 − 1/k) · ∇(mean of the replayed rows)."""
    rule = learning.backprop(model)
    watched, seen = replaying(rule)
    learner = cl.replay(2)(watched)
    params, memory, indices = after_tasks(stream, learner, done)
    batch = rows_of_task(stream, indices, done, jnp.arange(4, dtype=jnp.int32))
    found, info, _ = learner.gradient(memory, params, batch, jax.random.key(5))
    mixed = seen[0]
    assert len(mixed.weight) == 8
    np.testing.assert_array_equal(mixed.index[:4], batch.index)
    assert set(np.asarray(mixed.index[4:]).tolist()) <= set(kept_rows(memory).index.tolist())

    of_half = lambda half: jax.jit(rule.gradient)(
        (), params, jax.tree.map(lambda leaf: leaf[half], mixed)._replace(weight=jnp.ones(4)), jax.random.key(0)
    )
    (now, told_now, _), (past, told_past, _) = of_half(slice(0, 4)), of_half(slice(4, 8))
    share = 1 / (done + 1)
    chex.assert_trees_all_close(found, jax.tree.map(lambda a, b: share * a + (1 - share) * b, now, past), atol=1e-10)
    np.testing.assert_allclose(info.loss, share * told_now.loss + (1 - share) * told_past.loss, rtol=1e-10)


def test_all_tasks_behind_are_replayed_alike(stream, after_tasks, rows_of_task):
    """400 rows at once from two tasks with equally many stored: 200 ± 5 · 10 of each."""
    watched, seen = replaying(learning.backprop(NETS["static"]))
    learner = cl.replay(2, rows=400)(watched)
    params, memory, indices = after_tasks(stream, learner, 2)
    batch = rows_of_task(stream, indices, 2, jnp.arange(3, dtype=jnp.int32))
    learner.gradient(memory, params, batch, jax.random.key(5))
    drawn = np.asarray(seen[0].task[3:])
    assert len(drawn) == 400
    assert abs((drawn == 0).sum() - 200) < 50
    assert set(drawn) == {0, 1}


@every_net
def test_nothing_is_replayed_in_the_first_task(stream, model, after_tasks, rows_of_task):
    rule = learning.backprop(model)
    learner = cl.replay(2)(rule)
    params, memory, indices = after_tasks(stream, learner, 0)
    batch = rows_of_task(stream, indices, 0, jnp.arange(4, dtype=jnp.int32))
    found, _, _ = learner.gradient(memory, params, batch, jax.random.key(5))
    plain, _, _ = rule.gradient((), params, batch, jax.random.key(5))
    chex.assert_trees_all_close(found, plain, atol=1e-14)


def test_the_first_task_goes_as_without_replay_and_the_second_does_not(stream):
    """Through the runner: rows 1 of the accuracies alike; later the weights differ."""

    def run(learner):
        ends = []
        keep = lambda moment, state: ends.append(jax.tree.map(np.asarray, state.progress.params))
        experiment = cl.Experiment(stream, learner, optax.sgd(0.1), steps=5, batch=4)
        cl.run(experiment, jax.random.key(0), seeds=1, on_task=keep)
        return ends

    rule = learning.backprop(NETS["static"])
    naive, replayed = run(rule), run(cl.replay(2)(rule))
    chex.assert_trees_all_close(naive[0], replayed[0], atol=1e-12)
    assert np.abs(naive[1][0]["w"] - replayed[1][0]["w"]).max() > 1e-3


@pytest.mark.parametrize(
    ("build", "sentence"),
    [(lambda: cl.replay(0), "per_class must be at least 1, got 0"), (lambda: cl.replay(2, rows=0), "rows must be at")],
)
def test_less_than_one_row_is_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
