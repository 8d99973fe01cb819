"""Several image data sets as one: digits, then MNIST, then Fashion-MNIST, each with classes of its own.

`continual.split(joined(digits(), mnist(), fashion_mnist()), 10, shuffle=False)` makes a task of each.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bptoolkit.checks import check
from bptoolkit.counts import check_whole
from bptoolkit.types import Dataset, Rows

__all__ = ["joined"]


def joined(*datasets: Dataset, side: int = 28) -> Dataset:
    """One data set whose classes are those of the first, then those of the second, and so on.

    Images are scaled to side × side by bilinear interpolation where they are of another size, and stored as uint8,
    round(255 x / scale).

    Args:
        datasets: at least one, of images (n, h, w) with values in 0 … scale, and class numbers.
        side: pixels.

    Raises:
        ValueError: no data set, or one that `check` refuses; rows that are not images, values outside 0 … scale,
            targets that are not class numbers; a side below 1.
    """
    if not datasets:
        raise ValueError("joined needs at least one data set, got none.")
    check_whole(side=side)
    for dataset in map(check, datasets):
        shape, targets = dataset.train.x.shape, dataset.train.y.ndim
        if len(shape) != 3 or targets != 1:
            raise ValueError(
                f"joined needs images (n, h, w) with class numbers, got {dataset.name or 'a data set'} with x of shape "
                f"{shape} and y with {targets} axes."
            )
        for part, rows in (("train", dataset.train), ("test", dataset.test)):
            low, high = float(rows.x.min()), float(rows.x.max())
            if low < 0 or high > dataset.scale:
                raise ValueError(
                    f"joined needs values in 0 … scale, here 0 … {dataset.scale:g}, got {low:g} … {high:g} in {part}.x "
                    f"of {dataset.name or 'a data set'}. Take as_pixels of it first."
                )
    first = np.cumsum([0] + [dataset.classes for dataset in datasets])
    return Dataset(
        train=_stacked([(d.train, d.scale) for d in datasets], first, side),
        test=_stacked([(d.test, d.scale) for d in datasets], first, side),
        classes=int(first[-1]),
        scale=255.0,
        name="+".join(dataset.name or "unnamed" for dataset in datasets),
    )


def _stacked(parts: list[tuple[Rows, float]], first: np.ndarray, side: int) -> Rows:
    x = [_pixels(rows, scale, side) for rows, scale in parts]
    y = [rows.y.astype(jnp.int32) + jnp.int32(offset) for (rows, _), offset in zip(parts, first, strict=False)]
    return Rows(jnp.concatenate(x), jnp.concatenate(y))


def _pixels(rows: Rows, scale: float, side: int) -> jax.Array:
    """(n, side, side) uint8."""
    if rows.x.shape[1:] == (side, side) and rows.x.dtype == jnp.uint8 and scale == 255.0:
        return rows.x
    x = rows.x.astype(jnp.float32) / jnp.float32(scale)
    sized = jax.image.resize(x, (len(x), side, side), "linear")
    return jnp.round(255 * jnp.clip(sized, 0, 1)).astype(jnp.uint8)
