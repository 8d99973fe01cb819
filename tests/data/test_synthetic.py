"""Synthetic classes have the counts asked for, come from the key alone, and are as hard as the formula says."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.checks import check
from bptoolkit.data import as_pixels, gaussian_classes
from bptoolkit.types import Dataset, Rows


def made(seed=0, classes=3, rows=20, features=5, spread=1.0, **options):
    return gaussian_classes(jax.random.key(seed), classes, rows, features, spread, **options)


def class_means(rows, classes):
    x, y = np.asarray(rows.x), np.asarray(rows.y)
    return np.stack([x[y == c].mean(axis=0) for c in range(classes)])


def nearest_mean_accuracy(means, rows):
    distances = np.linalg.norm(np.asarray(rows.x)[:, None] - means, axis=-1)
    return (distances.argmin(axis=1) == np.asarray(rows.y)).mean()


@pytest.mark.parametrize(("rows", "test_rows"), [(7, None), ([3, 1, 8], None), ([0, 4, 2], 5), (6, [1, 0, 2])])
def test_counts_are_those_asked_for(rows, test_rows):
    dataset = check(made(rows=rows, test_rows=test_rows, features=(4, 2)))
    train = np.broadcast_to(rows, 3)
    test = train if test_rows is None else np.broadcast_to(test_rows, 3)
    np.testing.assert_array_equal(np.bincount(dataset.train.y, minlength=3), train)
    np.testing.assert_array_equal(np.bincount(dataset.test.y, minlength=3), test)
    assert dataset.train.x.shape[1:] == (4, 2)
    assert dataset.train.y.dtype == jnp.int32


def test_the_key_decides_everything():
    chex.assert_trees_all_equal(made(seed=1)[:2], made(seed=1)[:2])
    one, other = made(seed=1), made(seed=2)
    assert not jnp.allclose(one.train.x, other.train.x)


def test_train_and_test_share_their_means_and_not_their_rows():
    """At spread 0 every row is its class's mean, in both parts; above it no test row is a training row."""
    dataset = made(spread=0.0)
    means = class_means(dataset.train, 3)
    chex.assert_trees_all_close(dataset.train.x, means[dataset.train.y])
    chex.assert_trees_all_close(dataset.test.x, means[dataset.test.y])
    noisy = made(spread=0.1)
    assert not (noisy.train.x[:, None] == noisy.test.x).all(axis=-1).any()


def test_rows_are_not_in_order_of_class():
    assert (jnp.diff(made(rows=50).train.y) < 0).sum() > 20  # in order of class there would be none


def test_spread_is_the_deviation_within_a_class():
    """The pooled variance of 3 · 2000 · 5 numbers; its standard error is √(2/30000) = 0.8 %: five of them allowed."""
    dataset = made(rows=2000, spread=0.3)
    within = dataset.train.x - class_means(dataset.train, 3)[dataset.train.y]
    assert float((within**2).mean()) == pytest.approx(0.09, rel=0.04)


@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_two_classes_are_as_hard_as_the_formula_says(spread):
    """Nearest-mean accuracy is Φ(d / 2 spread); standard error at 20000 rows ≤ 0.0036: four of them allowed."""
    means = class_means(made(classes=2, rows=1, spread=0.0).train, 2)  # the spread does not touch the means
    dataset = made(classes=2, rows=10000, spread=spread)
    z = np.linalg.norm(means[0] - means[1]) / (2 * spread)
    expected = (1 + math.erf(z / math.sqrt(2))) / 2  # Φ(z)
    assert nearest_mean_accuracy(means, dataset.test) == pytest.approx(expected, abs=0.0144)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"spread": -1.0}, "spread must be at least 0 and finite, got -1.0"),
        ({"spread": float("nan")}, "spread must be at least 0 and finite, got nan"),
        ({"rows": [1, 2]}, r"rows must be one count, or one for each of 3 classes, none below 0, got \[1, 2\]"),
        ({"rows": -1}, "rows must be one count.* got -1"),
        ({"rows": 2.5}, "rows must be one count.* got 2.5"),
        ({"test_rows": [1, 2, -3]}, "test_rows must be one count"),
        ({"classes": 2.5}, "classes must be a whole number, got 2.5"),
        ({"classes": True}, "classes must be a whole number, got True"),
        ({"features": -4}, "features must be at least 1, got -4"),
        ({"features": (2, 0)}, "features must be at least 1, got 0"),
        ({"spread": float("inf")}, "spread must be at least 0 and finite, got inf"),
    ],
)
def test_bad_sizes_get_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        made(**options)


def test_pixels_are_within_half_a_level_of_what_they_store():
    """x ≈ low + (high − low) · pixel / 255; training rows use all of 0 … 255."""
    dataset = made(rows=200)
    pixels = check(as_pixels(dataset))
    low, high = dataset.train.x.min(), dataset.train.x.max()
    assert (pixels.train.x.dtype, pixels.test.x.dtype, pixels.scale) == (jnp.uint8, jnp.uint8, 255.0)
    back = low + (high - low) * pixels.train.x.astype(low.dtype) / 255
    assert float(jnp.abs(back - dataset.train.x).max()) <= float(high - low) / 510 * (1 + 1e-6)
    assert (int(pixels.train.x.min()), int(pixels.train.x.max())) == (0, 255)
    chex.assert_trees_all_equal(pixels.train.y, dataset.train.y)


def test_test_rows_beyond_the_training_range_are_clipped_not_wrapped():
    dataset = made()
    test = dataset.test._replace(x=jnp.full_like(dataset.test.x, 1e6).at[0].set(-1e6))
    pixels = as_pixels(dataset._replace(test=test)).test.x
    assert (pixels[0] == 0).all()
    assert (pixels[1:] == 255).all()


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_values_without_a_range_are_refused(value):
    dataset = made(classes=1, rows=2, spread=0.0, features=1)
    dataset = dataset._replace(train=dataset.train._replace(x=dataset.train.x.at[0].set(value).at[1].set(1.0)))
    with pytest.raises(ValueError, match="finite range" if value == 1 else "train.x must be finite"):
        as_pixels(dataset)


def test_a_test_row_that_is_no_number_is_no_black_pixel():
    dataset = made()
    with pytest.raises(ValueError, match=r"test\.x must be finite"):
        as_pixels(dataset._replace(test=dataset.test._replace(x=dataset.test.x.at[0].set(jnp.nan))))


def test_whole_numbers_become_pixels_without_wrapping_round():
    x = jnp.array([[-100, 0, 100]], jnp.int8)
    pixels = as_pixels(Dataset(Rows(x, jnp.array([0])), Rows(x, jnp.array([0])), 1))
    assert pixels.train.x.tolist() == [[0, 128, 255]]
