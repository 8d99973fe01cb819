"""Streams whose tasks meet otherwise: one pass, blurred boundaries, renamed labels."""

from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import continual as cl
from bptoolkit import data
from bptoolkit.continual.boundaries import blurry, online
from bptoolkit.continual.streams import gather

ROWS = (9, 7, 8, 6, 9, 5)


@pytest.fixture(scope="module")
def ragged():
    return data.gaussian_classes(jax.random.key(1), 6, ROWS, 4, test_rows=2)


def drawn(stream, seed=0):
    return jax.tree.map(np.asarray, jax.jit(stream.draw)(jax.random.key(seed)))


def tasks_of(view):
    return [index[:count].tolist() for index, count in zip(view.index, view.count, strict=True)]


def test_one_pass_takes_so_many_different_rows_of_each_task(ragged):
    """Eleven, the rows of the two smallest classes, of the tasks that the first half of the key draws."""
    stream = cl.split(ragged, 2)
    short = online(stream, 11)
    whole = jax.jit(stream.draw)(jax.random.split(jax.random.key(0))[0])
    found = drawn(short)
    assert short.rows_max == 11
    assert found.train.count.tolist() == [11, 11, 11]
    for some, all_of_it in zip(tasks_of(found.train), tasks_of(whole.train), strict=True):
        assert len(set(some)) == 11
        assert set(some) <= set(all_of_it)
    np.testing.assert_array_equal(found.test.index, whole.test.index)
    assert tasks_of(found.train) != tasks_of(drawn(short, 1).train)
    permuted = online(cl.permuted(ragged, 3), 44)
    assert drawn(permuted).train.index.shape == (3, 44)


def test_one_pass_of_a_part_of_a_stream_takes_no_row_twice(ragged):
    """Of held-out streams a task may have fewer rows than asked for: it keeps them, and its count says how many."""
    part = cl.held_out(cl.split(ragged, 2), 2)
    there = jax.jit(part.draw)(jax.random.split(jax.random.key(0))[0]).train.count.tolist()
    view = drawn(online(part, 8)).train
    rows = tasks_of(view)
    assert min(there) < 8
    assert [len(t) for t in rows] == [min(8, count) for count in there]
    assert all(len(set(t)) == len(t) for t in rows)
    for index, count in zip(view.index, view.count, strict=True):
        np.testing.assert_array_equal(index[count:], index[count - 1])
    again = drawn(online(online(cl.split(ragged, 2), 5), 5))
    assert [len(set(t)) for t in tasks_of(again.train)] == [5, 5, 5]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_blurring_deals_a_share_of_every_task_anew(ragged, share):
    """Every row is in one task still, sizes stay; at most the share (rounded) of a task's rows is foreign to it."""
    stream = cl.split(ragged, 2)
    whole, found = drawn(stream), drawn(blurry(stream, share))
    before, after = tasks_of(whole.train), tasks_of(found.train)
    assert [len(t) for t in after] == [len(t) for t in before]
    assert sorted(chain(*after)) == sorted(chain(*before)) == list(range(sum(ROWS)))
    strayed = [len(set(a) - set(b)) for a, b in zip(after, before, strict=True)]
    assert all(n <= round(share * len(t)) for n, t in zip(strayed, after, strict=True))
    assert (sum(strayed) > 0) == (share > 0)
    if share == 0:
        assert after == before
    np.testing.assert_array_equal(found.test.index, whole.test.index)
    for index, count in zip(found.train.index, found.train.count, strict=True):
        np.testing.assert_array_equal(index[count:], index[count - 1])
    for task, rows in enumerate(after):
        y = np.asarray(ragged.train.y)[rows]
        own = {int(c) for c in np.asarray(ragged.train.y)[before[task]]}
        assert all((found.slot[task, c] >= 0) == (c in own) for c in set(y.tolist()))


def test_strayed_rows_keep_their_labels(ragged):
    stream = blurry(cl.split(ragged, 2), 0.5)
    indices = jax.jit(stream.draw)(jax.random.key(0))
    row = indices.train.index[1]
    batch = gather(stream.data.train, 1.0, indices, jnp.full_like(row, 1), row)
    np.testing.assert_array_equal(batch.target.argmax(1), np.asarray(ragged.train.y)[np.asarray(row)])


def test_renamed_labels_are_a_permutation_of_each_task(ragged):
    stream = cl.label_shuffled(ragged, 4)
    found = drawn(stream)
    assert stream.outputs == 6
    for output in found.output:
        assert sorted(output.tolist()) == list(range(6))
    np.testing.assert_array_equal(found.output, found.slot)
    assert len({tuple(o) for o in found.output.tolist()}) == 4
    row = jnp.arange(sum(ROWS), dtype=jnp.int32)
    batch = gather(ragged.train, 1.0, jax.tree.map(jnp.asarray, found), jnp.full_like(row, 2), row)
    np.testing.assert_array_equal(batch.target.argmax(1), found.output[2][np.asarray(ragged.train.y)])
    np.testing.assert_array_equal(batch.x, ragged.train.x)


def test_rising_angles_lie_each_in_its_own_part_of_the_range():
    """36 degrees for each of five; not so if drawn from the whole range."""
    dots = data.gaussian_classes(jax.random.key(1), 2, 2, (3, 3))
    part = lambda stream: np.floor(np.degrees(drawn(stream).angle) / 36).tolist()
    assert part(cl.rotated(dots, 5, rising=True)) == [0, 1, 2, 3, 4]
    assert part(cl.rotated(dots, 5)) != [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda d: online(cl.split(d, 2), 12), "rows must be in 1 … 11, the rows of the smallest task, got 12"),
        (lambda d: online(cl.split(d, 2), 0), "rows must be at least 1, got 0"),
        (lambda d: online(online(cl.split(d, 2), 5), 6), "rows must be in 1 … 5, the rows of the smallest task, got 6"),
        (lambda d: blurry(cl.permuted(d, 3, "class"), 0.5), "classes that are in one task each, got 3 tasks of 6 of 6"),
        (lambda d: blurry(cl.split(d, 2), 1.5), r"share must be in \[0, 1\], got 1.5"),
        (lambda d: blurry(cl.split(d, 2), "half"), r"share must be in \[0, 1\], got half"),
        (lambda d: blurry(cl.split(d, 2, "task"), 0.5), 'blurry needs a stream of scenario "class", got "task"'),
        (lambda d: cl.label_shuffled(d, 0), "tasks must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(ragged, build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(ragged)
