"""What is kept of a stream: a reservoir against the plain algorithm R, and stored rows drawn in epochs."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.continual import buffers
from bptoolkit.continual.buffers import add, draw_in_epochs, new_reservoir
from bptoolkit.continual.streams import spec
from bptoolkit.learning.learner import rows_of
from bptoolkit.models import mlp


def batch_of(numbers, weight=None):
    """One row a number, which is its value, its label's and its index."""
    numbers = jnp.asarray(numbers, jnp.int32)
    rows = rows_of(jnp.broadcast_to(numbers[:, None], (len(numbers), 4)), numbers % 6, 6, 1.0)._replace(index=numbers)
    return rows if weight is None else rows._replace(weight=jnp.asarray(weight, float))


def offered(stream, capacity, batches, key):
    """A reservoir that was offered all batches, each row with ten times its number beside it."""
    reservoir = new_reservoir(spec(stream), capacity, jax.ShapeDtypeStruct((), jnp.int32))
    step = jax.jit(lambda r, batch, key: add(r, batch, key, 10 * batch.index))
    for i, batch in enumerate(batches):
        reservoir = step(reservoir, batch, jax.random.fold_in(key, i))
    return reservoir


def test_the_reservoir_is_that_of_a_plain_loop(clouds_by_task, key):
    """Algorithm R, a row at a time, with the same lots; 7 rows a batch of which 5 have weight, capacity 6."""
    weight = [1, 1, 0, 1, 1, 0, 1]
    batches = [batch_of(range(7 * i, 7 * i + 7), weight) for i in range(30)]
    found = offered(clouds_by_task, 6, batches, key)
    places, seen = [None] * 6, 0
    for i, batch in enumerate(batches):
        before = seen + np.cumsum(weight) - 1
        lots = jax.random.randint(jax.random.fold_in(key, i), (7,), 0, jnp.asarray(before) + 1, jnp.int32)
        for number, counts, lot in zip(np.asarray(batch.index), weight, np.asarray(lots), strict=True):
            if counts and seen < 6:
                places[seen] = number
            elif counts and lot < 6:
                places[lot] = number
            seen += counts
    assert seen == found.seen == 150
    np.testing.assert_array_equal(found.rows.index, places)
    np.testing.assert_array_equal(found.rows.x[:, 0], places)
    np.testing.assert_array_equal(found.beside, 10 * np.array(places))


def test_a_row_without_weight_takes_no_place_and_no_other_rows(clouds_by_task, key):
    """Seven rows of which five count, into six places: after one batch chance has not hidden a row that was lost."""
    found = offered(clouds_by_task, 6, [batch_of(range(7), [1, 1, 0, 1, 1, 0, 1])], key)
    assert found.seen == 5
    np.testing.assert_array_equal(found.rows.index[:5], [0, 1, 3, 4, 6])


def test_every_row_is_kept_with_the_same_probability(clouds_by_task):
    """600 reservoirs of 6 places after 40 rows: each row in 600 · 6/40 = 90 of them.  χ² with 39 degrees of freedom.

    (Inclusions of one reservoir exclude each other a little, so the statistic is 1 − 6/40 of a χ².)
    Negative control: always overwriting a place keeps the late rows.
    """
    batches = jax.vmap(lambda first: batch_of(first + jnp.arange(8)))(8 * jnp.arange(5))
    start = new_reservoir(spec(clouds_by_task), 6)

    def reservoir(seed):
        key = jax.random.key(seed)
        step = lambda r, given: (add(r, given[0], jax.random.fold_in(key, given[1])), None)
        return jax.lax.scan(step, start, (batches, jnp.arange(5)))[0].rows.index

    kept = np.asarray(jax.jit(jax.vmap(reservoir))(jnp.arange(600)))
    counts = np.bincount(kept.ravel(), minlength=40)
    assert counts.sum() == 3600
    statistic = ((counts - 90) ** 2 / 90).sum() / (1 - 6 / 40)
    assert stats.chi2.sf(statistic, 39) > 0.01
    late = np.bincount(np.random.default_rng(0).integers(34, 40, 3600), minlength=40)
    assert stats.chi2.sf(((late - 90) ** 2 / 90).sum(), 39) < 1e-10


def test_rows_of_a_reservoir_come_without_replacement(clouds_by_task, key):
    """Five of six, none twice; with three held, all three and no more."""
    some = jax.jit(buffers.some, static_argnums=2)
    full = offered(clouds_by_task, 6, [batch_of(range(20))], key)
    drawn, beside = some(full, key, 5)
    assert len(set(np.asarray(drawn.index).tolist())) == 5
    assert set(np.asarray(drawn.index).tolist()) <= set(np.asarray(full.rows.index).tolist())
    np.testing.assert_array_equal(beside, 10 * np.asarray(drawn.index))
    short, _ = some(offered(clouds_by_task, 6, [batch_of(range(3))], key), key, 5)
    assert short.weight.tolist() == [1, 1, 1, 0, 0]
    assert set(np.asarray(short.index[:3]).tolist()) == {0, 1, 2}
    nothing, _ = some(offered(clouds_by_task, 6, [], key), key, 5)
    assert not nothing.weight.any()


LEARNER = cl.replay(2)(learning.backprop(mlp(4, 6)))
take = jax.jit(draw_in_epochs, static_argnums=(1, 2))


def in_epochs(after_tasks, stream, done, rows, per_task, steps):
    """The rows that count of so many steps' draws, by index, and all that are stored."""
    _, memory, _ = after_tasks(stream, LEARNER, done)
    found = []
    for step in range(steps):
        drawn = take(memory._replace(step=jnp.int32(step)), rows, per_task)
        found.append([int(i) for i, w in zip(drawn.index, drawn.weight, strict=True) if w > 0])
    return found, set(np.asarray(memory.rows.index)[:done].ravel().tolist())


def test_an_epoch_shows_every_stored_row_once(after_tasks, clouds_by_task):
    """Two tasks behind with 4 rows each: two steps of 4 are an epoch, and the next has another order."""
    steps, stored = in_epochs(after_tasks, clouds_by_task, 2, 4, False, 6)
    for first in (0, 2, 4):
        assert sorted(steps[first] + steps[first + 1]) == sorted(stored)
    assert len({tuple(steps[i] + steps[i + 1]) for i in (0, 2, 4)}) == 3


def test_each_task_behind_gives_the_same_number(after_tasks, clouds_by_task, rows_of_task):
    """⌈3/2⌉ = 2 of each of two tasks, and every task's rows once in two steps; ⌈3/1⌉ of a single one."""
    steps, stored = in_epochs(after_tasks, clouds_by_task, 2, 3, True, 2)
    assert [len(s) for s in steps] == [4, 4]
    assert sorted(steps[0] + steps[1]) == sorted(stored)
    single, _ = in_epochs(after_tasks, clouds_by_task, 1, 3, True, 2)
    assert [len(s) for s in single] == [3, 3]


@pytest.mark.parametrize("strategy", [cl.replay, cl.agem])
def test_steps_are_counted_from_the_end_of_the_last_task(strategy, clouds_by_task, drive):
    """One a gradient, and from 0 again: the place in an epoch over what is stored by then."""
    driven = drive(strategy(2, epochs=True)(learning.backprop(mlp(4, 6))), clouds_by_task, steps=3)
    params, _, memory = driven.stage(driven.begin(), 0).progress
    gradient = jax.jit(driven.learner.gradient)
    for made in range(3):
        assert memory.step == made
        _, _, memory = gradient(memory, params, driven.rows(1), jax.random.key(0))


def test_nothing_counts_before_a_task_has_ended(after_tasks, clouds_by_task):
    for per_task in (False, True):
        assert in_epochs(after_tasks, clouds_by_task, 0, 3, per_task, 1)[0] == [[]]


def test_more_rows_than_are_stored_are_each_shown_once(after_tasks, clouds_by_task):
    steps, stored = in_epochs(after_tasks, clouds_by_task, 1, 30, False, 2)
    assert [sorted(s) for s in steps] == [sorted(stored)] * 2


ROOMY = {
    "replay": cl.replay,
    "replay in epochs": partial(cl.replay, epochs=True),
    "replay in epochs by task": partial(cl.replay, epochs=True, per_task=True),
    "agem": cl.agem,
    "gdumb": partial(cl.gdumb, steps=5, batch=4, optimizer=optax.sgd(0.1)),
    "icarl": cl.icarl,
}


@pytest.mark.parametrize("name", ROOMY)
def test_a_buffer_with_room_to_spare_is_that_which_just_holds_all(name, clouds_by_task, drive):
    """Classes of 2 to 7 rows: places that stay empty are never drawn, so that 7 places a class do what 60 do.

    Negative control: 6 places, which leave a row out, do something else.
    """
    rule = learning.backprop(mlp(4, 5, 6))
    end = lambda places: drive(ROOMY[name](places)(rule), clouds_by_task, steps=4).run()[-1].progress.params
    holding, roomy, short = map(end, (7, 60, 6))
    jax.tree.map(np.testing.assert_array_equal, holding, roomy)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(holding), jax.tree.leaves(short), strict=True))


def test_every_row_drawn_counts_once_anything_is_stored(after_tasks, clouds_by_task, key):
    """Rows of the first task, 12 of 100 places; each as often as any other: χ² with 11 degrees of freedom."""
    _, memory, _ = after_tasks(clouds_by_task, cl.replay(50)(learning.backprop(mlp(4, 6))), 1)
    drawn = jax.jit(buffers.draw, static_argnums=2)(memory, key, 1200)
    assert drawn.weight.sum() == 1200
    _, counts = np.unique(np.asarray(drawn.index), return_counts=True)
    assert len(counts) == 12
    assert stats.chi2.sf(((counts - 100) ** 2 / 100).sum(), 11) > 0.01


def test_memorable_rows_come_before_empty_places(after_tasks, clouds_by_task):
    """FROMP with 50 places for a class pulls as FROMP with as many as hold all: over every row that is wanted."""
    pulls = {}
    for places in (7, 50):
        learner = cl.fromp(1.0, places, rows=24)(learning.backprop(mlp(4, 5, 6)))
        params, memory, _ = after_tasks(clouds_by_task, learner, 2)
        moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
        batch = batch_of(range(4))
        grads, _, _ = jax.jit(learner.gradient)(memory, moved, batch, jax.random.key(3))
        pulls[places] = grads
    chex.assert_trees_all_close(pulls[7], pulls[50], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (partial(cl.reservoir_replay, 0), "capacity must be at least 1, got 0"),
        (partial(cl.replay, 2, per_task=True), "give epochs=True"),
        (partial(cl.replay, 2.5), "per_class must be a whole number, got 2.5"),
        (partial(cl.replay, float("nan")), "per_class must be a whole number, got nan"),
        (partial(cl.replay, True), "per_class must be a whole number, got True"),
        (partial(cl.gem, 3.0), "per_task must be a whole number, got 3.0"),
        (partial(cl.replay, learning.backprop(mlp(4, 6))), "per_class must be a whole number, got a learner. Give the"),
    ],
)
def test_bad_sizes_are_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.parametrize("build", [cl.reservoir_replay, lambda n: cl.der(n, 0.5)])
def test_a_buffer_smaller_than_the_classes_is_refused(clouds_by_task, build):
    learner = build(5)(learning.backprop(mlp(4, 6)))
    with pytest.raises(ValueError, match="capacity must be at least the number of classes, 6"):
        learner.init(learner.model.init(jax.random.key(0)), spec(clouds_by_task), jax.random.key(0))


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_classes_are_counted_by_the_outputs_where_each_task_has_its_own(clouds_by_task, scenario):
    """Three permutations of six classes are 18 classes to tell apart."""
    stream = cl.permuted(clouds_by_task.data, 3, scenario)
    learner = cl.reservoir_replay(17)(learning.backprop(mlp(4, 18)))
    with pytest.raises(ValueError, match="capacity must be at least the number of classes, 18"):
        learner.init(learner.model.init(jax.random.key(0)), spec(stream), jax.random.key(0))


@pytest.mark.parametrize(("outer", "weight"), [(cl.naive, 1.0), (cl.replay(2), 0.25), (cl.der(6, 0.5), 0.25)])
def test_rows_of_a_reservoir_weigh_as_the_current_ones_whatever_a_strategy_around_made_of_them(
    clouds_by_task, rows_of_task, outer, weight
):
    """Four current rows and six stored ones: replay and DER around give the four 1/4 each; they have none yet."""
    rule, seen = learning.backprop(mlp(4, 6)), []

    def gradient(memory, params, batch, key):
        seen[:] = [batch.weight]
        return rule.gradient(memory, params, batch, key)

    inside = cl.reservoir_replay(6, rows=6)(rule._replace(gradient=gradient))
    learner = outer(inside)
    params, indices = learner.model.init(jax.random.key(0)), clouds_by_task.draw(jax.random.key(0))
    memory = learner.init(params, spec(clouds_by_task), jax.random.key(0))
    batch = rows_of_task(clouds_by_task, indices, 0, jnp.arange(4, dtype=jnp.int32))
    stored = rows_of_task(clouds_by_task, indices, 0, jnp.arange(6, dtype=jnp.int32))
    _, _, held = inside.after_step(
        memory if outer is cl.naive else memory.inner, params, params, (), stored, jax.random.key(1)
    )

    @jax.jit
    def weights(memory):
        learner.gradient(memory, params, batch, jax.random.key(2))
        return seen[0]

    found = weights(held if outer is cl.naive else memory._replace(inner=held))
    np.testing.assert_allclose(found[found > 0], np.full(4 + 6, weight))
