"""The digits are scikit-learn's, each in exactly one part, and the parts are stratified."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from bptoolkit import data
from bptoolkit.checks import check
from bptoolkit.data.digits import every_nth_of_class


@pytest.fixture(scope="module")
def dataset():
    return check(data.digits())


def test_pixels_stay_small_integers_on_the_device(dataset):
    for rows in (dataset.train, dataset.test):
        assert isinstance(rows.x, jax.Array)
        assert (rows.x.dtype, rows.y.dtype, rows.x.shape[1:]) == (jnp.uint8, jnp.int32, (8, 8))
    assert (dataset.classes, dataset.scale, dataset.name) == (10, 16.0, "digits")
    assert int(dataset.train.x.max()) == dataset.scale


def test_every_digit_is_in_exactly_one_part(dataset):
    """Digits and labels, put in one order, are those of scikit-learn."""

    def in_order(x, y):
        rows = np.column_stack([np.reshape(x, (len(y), -1)), y]).astype(int)
        return rows[np.lexsort(rows.T)]

    whole = load_digits()
    parts = (np.concatenate([part.x for part in dataset[:2]]), np.concatenate([part.y for part in dataset[:2]]))
    np.testing.assert_array_equal(in_order(*parts), in_order(whole.images, whole.target))


def test_a_fifth_of_each_class_is_test(dataset):
    sizes = np.bincount(load_digits().target)
    np.testing.assert_array_equal(np.bincount(dataset.test.y), sizes // 5)
    np.testing.assert_array_equal(np.bincount(dataset.train.y), sizes - sizes // 5)
    assert (len(dataset.train.y), len(dataset.test.y)) == (1442, 355)  # as the docstrings say


def test_every_nth_of_class_is_a_count_class_by_class(key):
    """The same marks from a loop with one counter a class."""
    y = np.asarray(jax.random.randint(key, (200,), 0, 7)) * 3  # labels need not be consecutive
    seen, expected = dict.fromkeys(y.tolist(), 0), []
    for label in y.tolist():
        seen[label] += 1
        expected.append(seen[label] % 4 == 0)
    np.testing.assert_array_equal(every_nth_of_class(y, 4), expected)


def test_the_split_is_the_same_every_time(dataset):
    again = data.digits()
    np.testing.assert_array_equal(again.train.x, dataset.train.x)
    np.testing.assert_array_equal(again.test.y, dataset.test.y)
