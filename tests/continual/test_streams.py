"""Streams: which rows a task has, how it shows them, and which outputs it may use."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from bptoolkit import continual as cl
from bptoolkit import data
from bptoolkit.continual.streams import gather, spec
from bptoolkit.types import Dataset, Rows

ROWS, TEST_ROWS = (3, 7, 1, 5, 4, 2), (2, 1, 4, 3, 1, 2)
SCENARIOS = ("class", "domain", "task")


@pytest.fixture(scope="module")
def ragged():
    return data.gaussian_classes(jax.random.key(1), 6, ROWS, 4, test_rows=TEST_ROWS)


@pytest.fixture(scope="module")
def images():
    """Five images of 4 × 5 pixels as uint8, no two pixels of one alike."""
    x = jax.vmap(lambda k: jax.random.permutation(k, jnp.arange(20, dtype=jnp.uint8)))(
        jax.random.split(jax.random.key(2), 5)
    )
    rows = Rows(x.reshape(5, 4, 5), jnp.arange(5, dtype=jnp.int32) % 3)
    return Dataset(rows, rows, 3, scale=20.0)


def drawn(stream, key):
    return jax.tree.map(np.asarray, jax.jit(stream.draw)(key))


def whole_task(stream, indices, task, part="train"):
    """All rows of one task, as a batch."""
    view = getattr(indices, part)
    row = jnp.asarray(view.index[task, : view.count[task]])
    rows = getattr(stream.data, part)
    indices = jax.tree.map(jnp.asarray, indices)
    return jax.jit(lambda rows: gather(rows, stream.data.scale, indices, jnp.full_like(row, task), row))(rows)


@pytest.mark.parametrize("per_task", [1, 2, 3, 4, 6])
def test_a_task_has_every_row_of_its_classes_and_no_other(ragged, key, per_task):
    """With 4 classes a task, 2 of the 6 are left over and left out."""
    stream = cl.split(ragged, per_task)
    assert stream.tasks == 6 // per_task
    indices, seen = drawn(stream, key), []
    for part, counts in (("train", ROWS), ("test", TEST_ROWS)):
        view, y = getattr(indices, part), np.asarray(getattr(ragged, part).y)
        for task in range(stream.tasks):
            rows = view.index[task, : view.count[task]]
            classes = sorted(set(y[rows].tolist()))
            assert len(classes) == per_task
            np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(np.isin(y, classes)))
            assert view.count[task] == sum(counts[c] for c in classes)
            seen.append(tuple(classes))
    assert seen[: stream.tasks] == seen[stream.tasks :]  # test tasks are those of training
    assert len(set(sum(seen[: stream.tasks], ()))) == per_task * stream.tasks


def test_places_beyond_the_count_repeat_a_row_of_the_task(ragged, key):
    view = drawn(cl.split(ragged, 2), key).train
    for index, count in zip(view.index, view.count, strict=True):
        assert set(index[count:]) <= set(index[:count])


def test_the_largest_task_fits(ragged):
    """rows_max is that of the two largest classes together, 7 + 5, whatever the key deals."""
    stream = cl.split(ragged, 2)
    assert (stream.rows_max, stream.test_rows_max) == (12, 7)
    assert drawn(stream, jax.random.key(0)).train.index.shape == (3, 12)
    together = [drawn(cl.split(ragged, 2, shuffle=False), jax.random.key(0)).train.count.tolist()]
    assert together == [[10, 6, 6]]  # classes 0 and 1, 2 and 3, 4 and 5


def test_the_order_of_classes_depends_on_the_key(ragged):
    stream = cl.split(ragged, 1)
    order = lambda seed: tuple(np.asarray(ragged.train.y)[drawn(stream, jax.random.key(seed)).train.index[:, 0]])
    assert order(0) == order(0)
    orders = {order(seed) for seed in range(20)}
    assert len(orders) > 15  # of 720
    assert len({one[0] for one in orders}) > 3
    fixed = cl.split(ragged, 1, shuffle=False)
    np.testing.assert_array_equal(
        np.asarray(ragged.train.y)[drawn(fixed, jax.random.key(0)).train.index[:, 0]], range(6)
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_split_scenarios_differ_in_outputs_active_and_labels(ragged, key, scenario):
    stream = cl.split(ragged, 2, scenario)
    indices = drawn(stream, key)
    assert stream.outputs == (2 if scenario == "domain" else 6)
    for task in range(3):
        batch = whole_task(stream, indices, task)
        y = np.asarray(ragged.train.y)[np.asarray(batch.index)]
        label = np.asarray(batch.target).argmax(-1)
        np.testing.assert_array_equal(np.sum(batch.target, -1), 1)
        assert batch.active.shape == (len(y), stream.outputs)
        if scenario == "domain":  # one output for each of the task's classes, one to one
            assert len(set(zip(y, label, strict=True))) == len(set(y)) == len(set(label)) == 2
        else:
            np.testing.assert_array_equal(label, y)
        own = np.isin(np.arange(stream.outputs), label) if scenario == "task" else np.ones(stream.outputs, bool)
        np.testing.assert_array_equal(batch.active, np.tile(own, (len(y), 1)))
        slots = indices.slot[task, y]
        assert set(slots) == {0, 1}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_permuted_scenarios_differ_in_outputs_active_and_labels(ragged, key, scenario):
    stream = cl.permuted(ragged, 3, scenario)
    indices = drawn(stream, key)
    assert stream.outputs == (6 if scenario == "domain" else 18)
    for task in range(3):
        batch = whole_task(stream, indices, task)
        np.testing.assert_array_equal(batch.index, np.arange(sum(ROWS)))
        first = 0 if scenario == "domain" else 6 * task
        np.testing.assert_array_equal(np.argmax(batch.target, -1), np.asarray(ragged.train.y) + first)
        own = np.arange(stream.outputs) // 6 == task if scenario == "task" else np.ones(stream.outputs, bool)
        np.testing.assert_array_equal(batch.active, np.tile(own, (sum(ROWS), 1)))


def test_permuted_puts_every_pixel_somewhere_in_every_task(images, key):
    stream = cl.permuted(images, 3)
    indices = drawn(stream, key)
    np.testing.assert_array_equal(np.sort(indices.order, 1), np.tile(np.arange(20), (3, 1)))
    assert len({tuple(order) for order in indices.order} | {tuple(range(20))}) == 4  # the first task is permuted too
    flat = np.asarray(images.train.x).reshape(5, 20) / 20
    for task in range(3):
        x = np.asarray(whole_task(stream, indices, task).x)
        assert x.shape == (5, 4, 5)
        np.testing.assert_allclose(x.reshape(5, 20), flat[:, indices.order[task]])


@pytest.mark.parametrize("colours", [(), (2,)])
def test_quarter_turns_are_those_of_numpy(images, key, colours):
    """Angle 0 is the identity, π/2 turns counter-clockwise as rot90 does, π twice; on a square image."""
    square = images.train.x[:, :, :4]
    x = jnp.stack([square, square[::-1]], -1) if colours else square
    rows = Rows(x, images.train.y)
    stream = cl.rotated(Dataset(rows, rows, 3, scale=20.0), 4)
    turned = drawn(stream, key)._replace(angle=np.arange(4) * np.pi / 2)
    for task in range(4):
        expected = np.rot90(np.asarray(x) / 20, task, axes=(1, 2))
        np.testing.assert_allclose(whole_task(stream, turned, task).x, expected, atol=1e-12)


@pytest.mark.parametrize("colours", [False, True])
def test_the_nearest_pixel_is_that_of_scipy(images, colours):
    """By `map_coordinates` of order 0, outside is 0; at angles where no place is as near to two pixels."""
    x = jnp.stack([images.train.x, images.train.x[::-1]], -1) if colours else images.train.x
    rows = Rows(x, images.train.y)
    stream = cl.rotated(Dataset(rows, rows, 3, scale=20.0), 3, interpolation="nearest")
    given = drawn(stream, jax.random.key(3))
    middle = (np.array(x.shape[1:3]) - 1) / 2
    away = np.stack(np.meshgrid(*map(np.arange, x.shape[1:3]), indexing="ij"), -1) - middle
    planes = np.moveaxis(np.asarray(x), -1, 1) if colours else np.asarray(x)[:, None]
    for task, angle in enumerate(np.asarray(drawn(cl.rotated(images, 3), jax.random.key(3)).angle)):
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        place = np.moveaxis(away @ turn.T + middle, -1, 0)
        take = partial(scipy.ndimage.map_coordinates, coordinates=place, order=0, mode="grid-constant")
        expected = np.array([[take(plane) for plane in image] for image in planes]) / 20
        expected = np.moveaxis(expected, 1, -1) if colours else expected[:, 0]
        np.testing.assert_allclose(whole_task(stream, given, task).x, expected, atol=1e-12)


def test_a_half_turn_of_an_oblong_image(images, key):
    stream = cl.rotated(images, 1)
    turned = drawn(stream, key)._replace(angle=np.array([np.pi]))
    expected = np.asarray(images.train.x)[:, ::-1, ::-1] / 20
    np.testing.assert_allclose(whole_task(stream, turned, 0).x, expected, atol=1e-12)


def test_an_eighth_turn_moves_what_is_right_of_the_centre_up(key):
    """A bright pixel 2 to the right of the centre goes to √2 up, √2 right: its centre of mass tells."""
    image = jnp.zeros((1, 9, 9)).at[0, 4, 6].set(1.0)
    rows = Rows(image, jnp.zeros(1, jnp.int32))
    stream = cl.rotated(Dataset(rows, rows, 1), 1)
    seen = np.asarray(whole_task(stream, drawn(stream, key)._replace(angle=np.array([np.pi / 4])), 0).x)[0]
    i, j = (np.sum(seen * grid) / seen.sum() - 4 for grid in np.mgrid[:9, :9])
    np.testing.assert_allclose([i, j], [-np.sqrt(2), np.sqrt(2)], atol=0.1)


def test_angles_are_drawn_below_the_limit(images):
    angles = np.stack([drawn(cl.rotated(images, 5, degrees=90.0), jax.random.key(s)).angle for s in range(20)])
    assert 0 <= angles.min() < angles.max() < np.pi / 2
    assert angles.max() > 1.4
    assert len(np.unique(angles)) == 100


def test_pixels_stay_as_they_are_stored_until_gathered(images, key):
    for stream in (cl.split(images, 1), cl.permuted(images, 2), cl.rotated(images, 2)):
        assert stream.data.train.x is images.train.x
        batch = whole_task(stream, drawn(stream, jax.random.clone(key)), 0)
        assert batch.x.dtype == jnp.float64
        assert float(batch.x.max()) <= 19 / 20 + 1e-12  # interpolation takes means


@pytest.mark.parametrize("make", [lambda d: cl.split(d, 1), lambda d: cl.permuted(d, 2), lambda d: cl.rotated(d, 2)])
def test_twenty_seeds_share_one_copy_of_the_images(make):
    """What `draw` returns for 20 seeds is less than ONE copy of the images would be, and holds none of them."""
    x = jnp.zeros((30, 40, 40), jnp.uint8)
    rows = Rows(x, jnp.arange(30, dtype=jnp.int32) % 3)
    stream = make(Dataset(rows, rows, 3))
    draws = jax.eval_shape(jax.vmap(stream.draw), jax.random.split(jax.random.key(0), 20))
    for leaf in jax.tree.leaves(draws):
        assert leaf.dtype != jnp.uint8
        per_seed = leaf.size // 20
        assert per_seed <= max(2 * 1600, 3 * 30)  # orders of pixels, or rows of tasks
    closed_over = jax.make_jaxpr(stream.draw)(jax.random.key(0)).consts
    assert all(np.size(constant) <= 30 for constant in closed_over)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_spec_tells_shapes_as_they_are(ragged, key, scenario):
    stream = cl.split(ragged, 2, scenario)
    told = spec(stream)
    row = jax.tree.map(lambda leaf: leaf[0], whole_task(stream, drawn(stream, key), 0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), told.example) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), row
    )
    assert told[:5] == (3, 6, 2, 12, stream.outputs)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda d: cl.split(d, 7), "classes_per_task must be in 1 … 6, .* got 7"),
        (lambda d: cl.split(d, 0), "classes_per_task must be at least 1, got 0"),
        (lambda d: cl.split(d, 2.0), "classes_per_task must be a whole number, got 2.0"),
        (lambda d: cl.rotated(d, 2, degrees=float("nan")), "degrees must be positive and finite, got nan"),
        (lambda d: cl.split(d, 2, "taks"), "scenario must be .* got 'taks'"),
        (lambda d: cl.permuted(d, 2, "Class"), "scenario must be .* got 'Class'"),
        (lambda d: cl.permuted(d, 0), "tasks must be at least 1, got 0"),
        (lambda d: cl.rotated(d, 2), r"rotated needs images .* got shape \(22, 4\)"),
        (
            lambda d: cl.split(d._replace(classes=7), 2),
            "Every class needs rows in each part; train has none of class 6",
        ),
        (lambda d: cl.split(d._replace(classes=5), 2), "class numbers 0 … 4, got 5"),
        (lambda d: cl.permuted(one_hot(d), 2), "A stream needs class numbers"),
    ],
)
def test_what_cannot_be_a_stream_is_refused_with_a_sentence(ragged, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(ragged)


def one_hot(dataset):
    vectors = lambda rows: rows._replace(y=jnp.eye(6)[rows.y])
    return dataset._replace(train=vectors(dataset.train), test=vectors(dataset.test))


@pytest.mark.parametrize("make", [partial(cl.split, classes_per_task=2), partial(cl.permuted, tasks=2)])
def test_arrays_of_numpy_serve_as_well(make):
    x, y = np.arange(24.0).reshape(8, 3), np.array([0, 1, 2, 3] * 2)
    plain = make(Dataset(Rows(x, y), Rows(x, y), 4))
    same = make(Dataset(Rows(jnp.array(x), jnp.array(y)), Rows(jnp.array(x), jnp.array(y)), 4))
    dealt = jax.jit(lambda key, task: gather(plain.data.train, 1.0, plain.draw(key), task, jnp.arange(3)))
    expected = gather(same.data.train, 1.0, same.draw(jax.random.key(0)), jnp.zeros(3, int), jnp.arange(3))
    np.testing.assert_array_equal(dealt(jax.random.key(0), jnp.zeros(3, int)).x, expected.x)


def test_a_class_without_test_rows_is_refused():
    lopsided = data.gaussian_classes(jax.random.key(0), 3, 4, 2, test_rows=[2, 0, 2])
    with pytest.raises(ValueError, match="test has none of class 1"):
        cl.split(lopsided, 1)
