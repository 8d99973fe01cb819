"""A data set that cannot be learned from is refused with a sentence; one that can comes back as it is."""

import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.checks import check
from bptoolkit.types import Dataset, Rows


def good(dtype=jnp.float32) -> Dataset:
    """Five training rows and two test rows of 2 × 3 numbers, three classes."""
    train = Rows(jnp.ones((5, 2, 3), dtype), jnp.array([0, 1, 2, 0, 1], jnp.int32))
    return Dataset(train, Rows(jnp.zeros((2, 2, 3), dtype), jnp.array([2, 0], jnp.int32)), classes=3)


def with_train(**fields) -> Dataset:
    return good()._replace(train=good().train._replace(**fields))


def with_test(**fields) -> Dataset:
    return good()._replace(test=good().test._replace(**fields))


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bool_, jnp.int32, jnp.bfloat16, jnp.float32, jnp.float64])
def test_a_good_data_set_comes_back_as_it_is(dtype):
    dataset = good(dtype)
    assert check(dataset) is dataset


def test_numpy_arrays_and_target_vectors_are_good():
    targets = Rows(np.ones((4, 6)), np.full((4, 2), -0.5)), Rows(np.ones((1, 6)), np.zeros((1, 2)))
    dataset = Dataset(*targets, classes=2)
    assert check(dataset) is dataset


X = jnp.ones((5, 2, 3), jnp.float32)
Y = jnp.array([0, 1, 2, 0, 1], jnp.int32)
BAD = {
    "NaN": (
        with_train(x=X.at[3, 1, 2].set(jnp.nan)),
        r"train.x must be finite, got nan in row 3 \(1 of 5 rows are wrong",
    ),
    "infinity": (with_test(x=jnp.full((2, 2, 3), -jnp.inf)), r"test.x must be finite, got -inf in row 0 \(2 of 2 rows"),
    "NaN in bfloat16": (
        with_train(x=X.at[4].set(jnp.nan).astype(jnp.bfloat16)),
        "train.x must be finite, got nan in row 4",
    ),
    "complex": (with_train(x=X.astype(jnp.complex64)), "train.x must be real numbers, got complex64"),
    "words": (with_train(x=np.array(["a"] * 5)), "train.x must be real numbers, got <U1"),
    "label too large": (with_train(y=Y.at[2].set(3)), r"train.y must be class numbers 0 … 2, got 3 in row 2 \(1 of 5"),
    "label below 0": (with_test(y=jnp.array([0, -1])), "test.y must be class numbers 0 … 2, got -1 in row 1"),
    "float labels": (with_train(y=Y.astype(jnp.float32)), "train.y must be integer class numbers 0 … 2, got float32"),
    "bool labels": (with_train(y=Y > 0), "train.y must be integer class numbers 0 … 2, got bool"),
    "NaN in a target": (with_train(y=jnp.full((5, 2), jnp.nan)), "train.y must be finite, got nan in row 0"),
    "lengths": (with_train(y=Y[:4]), "one target for each example, got 5 rows of x and 4 of y"),
    "empty train": (with_train(x=X[:0], y=Y[:0]), "train must have at least one row, got none"),
    "empty test": (with_test(x=X[:0], y=Y[:0]), "test must have at least one row, got none"),
    "no rows at all": (with_train(x=X[0, 0, 0]), r"train.x and train.y must have rows, got shapes \(\) and \(5,\)"),
    "shapes": (
        with_test(x=jnp.zeros((2, 6))),
        r"train.x and test.x must hold examples of one shape, got \(2, 3\) and \(6,\)",
    ),
    "types": (
        with_test(x=jnp.zeros((2, 2, 3), jnp.uint8)),
        "train.x and test.x must be of one type, got float32 and uint8",
    ),
    "kinds of target": (with_test(y=jnp.zeros((2, 4))), r"train.y and test.y must hold examples of one shape.*\(4,\)"),
    "no classes": (good()._replace(classes=0), "classes must be at least 1, got 0"),
    "classes that are no whole number": (good()._replace(classes=7.0), "classes must be a whole number, got 7.0"),
    "lists": (with_train(x=[[1.0], [2.0]]), "train.x must be an array, got list. Take numpy.asarray of it"),
    "no data set": (5, "must be a Dataset, got int"),
    "a scale in words": (good()._replace(scale="2"), "scale must be positive and finite .* got 2"),
    "scale 0": (good()._replace(scale=0.0), "scale must be positive and finite .* got 0.0"),
    "scale NaN": (good()._replace(scale=float("nan")), "scale must be positive and finite .* got nan"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_data_set_gets_a_sentence(what):
    dataset, sentence = BAD[what]
    with pytest.raises(ValueError, match=sentence):
        check(dataset)
