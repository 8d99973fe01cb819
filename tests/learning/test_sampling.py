"""The order of rows: a keyed bijection of [0, n), cut into steps, checked by counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.learning.sampling import positions, shuffled


def order(key, n):
    return np.asarray(jax.jit(shuffled)(key, jnp.arange(n, dtype=jnp.int32), jnp.int32(n)))


def stage(key, count, batch, steps, replacement=False):
    """Positions and marks of the first steps of a stage, (steps, batch) each."""
    draw = jax.jit(jax.vmap(lambda step: positions(key, step, jnp.int32(count), batch, replacement)))
    return tuple(np.asarray(a) for a in draw(jnp.arange(steps, dtype=jnp.int32)))


@pytest.mark.parametrize("n", [97, 100, 101, 255, 256, 257, 1009, 60000])
def test_shuffled_is_a_bijection(key, n):
    np.testing.assert_array_equal(np.sort(order(key, n)), np.arange(n))


def test_shuffled_is_a_bijection_for_every_small_count(key):
    """Counts 1 … 64, so 1, 2, 3, all primes and squares below, under 8 keys; the count is traced."""
    place, counts = jnp.arange(64, dtype=jnp.int32), jnp.arange(1, 65, dtype=jnp.int32)
    one = lambda k, n: shuffled(k, jnp.minimum(place, n - 1), n)
    images = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jax.random.split(key, 8), counts)
    for by_count in np.asarray(images):
        for n, image in enumerate(by_count, start=1):
            np.testing.assert_array_equal(np.sort(image[:n]), np.arange(n))


def test_shuffled_depends_on_the_key_and_on_nothing_else():
    one, other = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(order(one, 100), order(jax.random.clone(one), 100))
    assert (order(jax.random.clone(one), 100) != order(other, 100)).mean() > 0.9


@pytest.mark.parametrize("n", [2, 5, 12])
def test_every_place_is_sent_everywhere_equally_often(key, n):
    """χ² of the table (place, image) over 4000 keys, (n − 1)² degrees of freedom, within 6 standard deviations."""
    keys, place = jax.random.split(key, 4000), jnp.arange(n, dtype=jnp.int32)
    images = np.asarray(jax.jit(jax.vmap(lambda k: shuffled(k, place, jnp.int32(n))))(keys))
    seen = np.stack([np.bincount(images[:, p], minlength=n) for p in range(n)])
    chi2, freedom = ((seen - 4000 / n) ** 2 / (4000 / n)).sum(), (n - 1) ** 2
    assert chi2 < freedom + 6 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("n", "least", "most"), [(5, 0.03, 0.07), (8, 0.015, 0.045), (12, 0, 0.04)])
def test_few_rows_come_to_their_places_about_equally_often(key, n, least, most):
    """As the docstring says, over 100,000 keys; chance alone makes the largest of 144 shares 3 %: 4 are allowed."""
    keys, place = jax.random.split(key, 100_000), jnp.arange(n, dtype=jnp.int32)
    images = np.asarray(jax.jit(jax.vmap(lambda k: shuffled(k, place, jnp.int32(n))))(keys))
    shares = np.stack([np.bincount(images[:, p], minlength=n) for p in range(n)]) * n / 100_000
    assert least <= np.abs(shares - 1).max() <= most


def test_neighbours_do_not_stay_neighbours(key):
    """A shift or an affine map would be a bijection too: successive images would differ by few numbers."""
    steps = np.diff(order(key, 1000)) % 1000
    assert len(np.unique(steps)) > 500  # of 999 drawn at random from 1000: 632


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (12, 4), (7, 7), (5, 1)])
def test_an_epoch_shows_each_row_at_most_once_and_drops_what_fills_no_batch(key, count, batch):
    per_epoch = count // batch
    place, counted = stage(key, count, batch, 3 * per_epoch)
    assert counted.all()
    for epoch in place.reshape(3, per_epoch * batch):
        assert len(np.unique(epoch)) == per_epoch * batch
        assert 0 <= epoch.min() <= epoch.max() < count


def test_epochs_differ_in_order_and_in_the_rows_they_leave_out(key):
    place, _ = stage(key, 10, 3, 60)
    epochs = place.reshape(20, 9)
    left_out = {45 - int(epoch.sum()) for epoch in epochs}  # 0 + … + 9 = 45
    assert len(left_out) > 3
    assert len({tuple(epoch) for epoch in epochs}) == 20


def test_a_batch_larger_than_the_task_shows_every_row_once(key):
    place, counted = stage(key, 5, 8, 4)
    np.testing.assert_array_equal(counted, [[True] * 5 + [False] * 3] * 4)
    for rows in place:
        np.testing.assert_array_equal(np.sort(rows[:5]), np.arange(5))
        assert 0 <= rows.min() <= rows.max() < 5


def test_draws_with_replacement_are_independent_and_uniform(key):
    """400 draws of 10 from 5 rows: 800 each, with a standard deviation of √(4000 · 0.2 · 0.8) = 25.3."""
    place, counted = stage(key, 5, 10, 400, replacement=True)
    assert counted.all()
    np.testing.assert_allclose(np.bincount(place.ravel(), minlength=5), 800, atol=5 * 25.3)
    assert all(len(np.unique(rows)) < 10 for rows in place)  # epochs could not do this


def test_a_task_without_rows_counts_nothing(key):
    for replacement in (False, True):
        assert not stage(jax.random.clone(key), 0, 3, 2, replacement)[1].any()


def test_another_count_compiles_nothing():
    traces = []

    @jax.jit
    def draw(key, step, count):
        traces.append(count)
        return positions(key, step, count, 4, False)

    for seed, (step, count) in enumerate([(0, 9), (3, 10), (7, 100)]):
        draw(jax.random.key(seed), jnp.int32(step), jnp.int32(count))
    assert len(traces) == 1
