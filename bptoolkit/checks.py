"""What a data set must be before anything is learned from it; host work only, in numpy.

A data set that passes has rows, one target a row, finite numbers, labels in range, and a training and a test part that
are read the same way.
"""

import jax.numpy as jnp
import numpy as np

from bptoolkit.counts import check_whole, fails, positive
from bptoolkit.types import Dataset, Rows


def check(dataset: Dataset) -> Dataset:
    """The data set itself, if it can be learned from.

    Args:
      dataset: integer x is taken as it is, float x must be finite.  A y of one axis holds class numbers
        0 … classes − 1; a y of more axes holds vectors to regress on.

    Raises:
      ValueError: no data set, rows that are no arrays, rows missing, x and y of different length, NaN or infinity,
        labels out of range, train and test of different shapes or types, a scale that cannot divide.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(f"A data set must be a Dataset, got {type(dataset).__name__}. Make one of two Rows.")
    check_whole(classes=dataset.classes)
    if fails(positive, dataset.scale):
        raise ValueError(f"scale must be positive and finite (an example is x / scale), got {dataset.scale}.")
    for part, rows in (("train", dataset.train), ("test", dataset.test)):
        _check_rows(part, rows)
        _check_numbers(f"{part}.x", rows.x)
        _check_targets(f"{part}.y", rows.y, dataset.classes)
    _check_alike("x", dataset.train.x, dataset.test.x)
    _check_alike("y", dataset.train.y, dataset.test.y)
    return dataset


def _check_rows(part: str, rows: Rows) -> None:
    for name, values in rows._asdict().items():
        if not hasattr(values, "dtype"):
            raise ValueError(f"{part}.{name} must be an array, got {type(values).__name__}. Take numpy.asarray of it.")
    if rows.x.ndim == 0 or rows.y.ndim == 0:
        raise ValueError(f"{part}.x and {part}.y must have rows, got shapes {rows.x.shape} and {rows.y.shape}.")
    if len(rows.x) != len(rows.y):
        raise ValueError(
            f"{part} must have one target for each example, got {len(rows.x)} rows of x and {len(rows.y)} of y."
        )
    if len(rows.x) == 0:
        raise ValueError(f"{part} must have at least one row, got none.  Give both parts rows: a result needs a test.")


def _check_numbers(name: str, values) -> None:
    if jnp.issubdtype(values.dtype, jnp.floating):
        numbers = np.asarray(values)
        _refuse(name, numbers, ~np.isfinite(numbers), "finite")
    elif not (jnp.issubdtype(values.dtype, jnp.integer) or values.dtype == bool):
        raise ValueError(f"{name} must be real numbers, got {values.dtype}.")


def _check_targets(name: str, y, classes: int) -> None:
    """One axis: class numbers.  More axes: any finite numbers."""
    if y.ndim > 1:
        _check_numbers(name, y)
    elif not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integer class numbers 0 … {classes - 1}, got {y.dtype}.\n"
            "Convert it with .astype('int32'), or give vectors of shape (rows, outputs) to regress on."
        )
    else:
        labels = np.asarray(y)
        _refuse(name, labels, (labels < 0) | (labels >= classes), f"class numbers 0 … {classes - 1}")


def _refuse(name: str, values: np.ndarray, wrong: np.ndarray, required: str) -> None:
    """Refuses the values if any is wrong, and names the first."""
    if wrong.any():
        rows = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
        raise ValueError(
            f"{name} must be {required}, got {values[wrong][0]} in row {rows[0]} "
            f"({len(rows)} of {len(wrong)} rows are wrong)."
        )


def _check_alike(name: str, train, test) -> None:
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"train.{name} and test.{name} must hold examples of one shape, got {train.shape[1:]} and {test.shape[1:]}."
        )
    if train.dtype != test.dtype:
        raise ValueError(f"train.{name} and test.{name} must be of one type, got {train.dtype} and {test.dtype}.")
