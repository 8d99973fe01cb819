"""Made-up classes whose difficulty is known: x = μ_c + spread · ε, with μ_c, ε ~ N(0, I).

Two classes at distance d = |μ_a − μ_b| are told apart with accuracy Φ(d / (2 spread)) at best, so the spread sets how
hard the set is, and the best possible accuracy can be computed.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bptoolkit.counts import check_whole, fails, nonnegative
from bptoolkit.types import Dataset, Key, Rows


def gaussian_classes(
    key: Key,
    classes: int,
    rows: int | Sequence[int],
    features: int | tuple[int, ...],
    spread: float = 1.0,
    *,
    test_rows: int | Sequence[int] | None = None,
) -> Dataset:
    """One Gaussian cloud a class: x = μ_c + spread · ε, in JAX's default float type, rows in random order.

    Args:
      key: the same key gives the same data set.
      classes: number of classes, at least 1.
      rows: training rows of each class; one number for all, or one a class (ragged, 0 allowed).
      features: shape of one example; a number n stands for (n,).
      spread: standard deviation within a class, in units of that between the means; 0 puts every row on its mean.
      test_rows: the same for the test rows; as many as training rows by default.

    Raises:
      ValueError: counts that do not fit the classes, negative counts, sizes below 1, a spread that is negative or not
        finite.
    """
    check_whole(classes=classes)
    if fails(nonnegative, spread):
        raise ValueError(f"spread must be at least 0 and finite, got {spread}.")
    shape = tuple(features) if isinstance(features, tuple | list) else (features,)
    for length in shape:
        check_whole(features=length)
    for_means, for_train, for_test = jax.random.split(key, 3)
    means = jax.random.normal(for_means, (classes, *shape))
    train = _counts("rows", rows, classes)
    test = train if test_rows is None else _counts("test_rows", test_rows, classes)
    return Dataset(
        train=_clouds(for_train, means, train, spread),
        test=_clouds(for_test, means, test, spread),
        classes=classes,
        name="gaussian_classes",
    )


def as_pixels(dataset: Dataset) -> Dataset:
    """The dataset with x stored as uint8: pixel = round(255 (x − low) / (high − low)), scale 255.

    low and high are the extremes of the training rows; test rows beyond them are clipped.

    Raises:
      ValueError: all training values are equal; values that are not finite, in either part.
    """
    for name, rows in (("train", dataset.train), ("test", dataset.test)):
        if not np.isfinite(np.asarray(rows.x)).all():
            raise ValueError(f"{name}.x must be finite, got NaN or infinity. A pixel could not tell it from a number.")
    low, high = float(dataset.train.x.min()), float(dataset.train.x.max())
    if not 0 < high - low < np.inf:
        raise ValueError(f"x must have a finite range to be cut into 256 levels, got {low} … {high}.")

    def quantise(rows: Rows) -> Rows:
        real = rows.x.astype(jnp.result_type(float))
        level = 255 * ((real - low) / (high - low))  # clipped below: devices differ in casts out of range
        return rows._replace(x=jnp.clip(jnp.round(level), 0, 255).astype(jnp.uint8))

    return dataset._replace(train=quantise(dataset.train), test=quantise(dataset.test), scale=255.0)


def _counts(name: str, rows: int | Sequence[int], classes: int) -> np.ndarray:
    counts = np.full(classes, rows) if np.ndim(rows) == 0 else np.asarray(rows)
    if counts.shape != (classes,) or not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
        raise ValueError(f"{name} must be one count, or one for each of {classes} classes, none below 0, got {rows}.")
    return counts


def _clouds(key: Key, means: jax.Array, counts: np.ndarray, spread: float) -> Rows:
    """counts[c] rows of class c, shuffled: a file in order of class would hide what relies on that order."""
    for_order, for_noise = jax.random.split(key)
    y = jax.random.permutation(for_order, jnp.asarray(np.repeat(np.arange(len(counts)), counts), jnp.int32))
    noise = jax.random.normal(for_noise, (len(y), *means.shape[1:]))
    return Rows(means[y] + jnp.asarray(spread, means.dtype) * noise, y)
