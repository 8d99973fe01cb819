"""What every study draws on: an empty figure with its panels in a grid, and numbers some of which may be null."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def canvas(rows: int, columns: int, inches: tuple[float, float], share: bool = False) -> "tuple[Figure, np.ndarray]":
    """The figure and its panels[row, column], which may share their axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)


def floats(values: Any) -> np.ndarray:
    """An array of what a record holds; NaN, which is left out of a picture, for null."""
    return np.array(values, np.float64)
