"""The 1797 handwritten digits that come with scikit-learn: real scans, 8 × 8, at hand without a network.

Reference: Alpaydin & Kaynak (1998), Cascading classifiers, Kybernetika 34 (the test part of UCI's optdigits).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from bptoolkit.types import Dataset, Rows


def digits() -> Dataset:
    """1442 training and 355 test digits, the same on every call: each fifth digit of a class is a test row.

    x is uint8 of shape (n, 8, 8), 0 … 16 (scale 16); y is int32.  Limits: both parts come from the same 13 writers, so
    test accuracy is that on new digits by known hands; it says nothing of new writers.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = np.asarray(pixels, np.uint8).reshape(-1, 8, 8), np.asarray(labels, np.int32)
    test = every_nth_of_class(y, 5)
    train = ~test
    return Dataset(
        train=Rows(jnp.array(x[train]), jnp.array(y[train])),
        test=Rows(jnp.array(x[test]), jnp.array(y[test])),
        classes=10,
        scale=16.0,
        name="digits",
    )


def every_nth_of_class(y: Int[np.ndarray, "rows"], n: int) -> Bool[np.ndarray, "rows"]:
    """Marks rows n, 2n, 3n, … of each class, counted from 1 in the order of the rows: ⌊count / n⌋ rows of a class."""
    of_class = y[:, None] == np.unique(y)  # (rows, classes), one True a row
    rank = np.cumsum(of_class, axis=0)[of_class]
    return rank % n == 0
