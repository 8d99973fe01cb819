"""An empty figure with its panels in a grid: what every study draws on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


def canvas(rows: int, columns: int, inches: tuple[float, float], share: bool = False) -> "tuple[Figure, np.ndarray]":
    """The figure and its panels[row, column], which may share their axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
