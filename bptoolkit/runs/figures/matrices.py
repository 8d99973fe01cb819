"""R[after, on] as heat maps: the whole of what a sequence of tasks did to a net."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bptoolkit.runs.figures.choose import columns_of, combinations, label, values_of
from bptoolkit.runs.figures.look import MANY, ON_DARK, ON_LIGHT, PAPER, SOFT, outer_labels, panels, thinned

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def matrices(results: "xarray.Dataset", summary: dict[str, Any], narrow: bool) -> "Figure":
    """One panel for each net × strategy, mean over seeds; the first row is the untrained net."""
    shown, columns = combinations(summary), columns_of(summary, narrow)
    side = max(0.75 + 0.31 * min(results.sizes["on"], MANY), 1.95)
    width, letters = (min(side, 2.1), 9.0 if results.sizes["on"] <= 6 else 6.5) if narrow else (side, 9.0)
    figure, axes = panels(len(shown), columns, (width, side + 0.35), extra=1.3)
    images = []
    for axis, combination in zip(axes, shown, strict=True):
        R = values_of(results, "accuracy", combination, summary).mean("seed").transpose("after", "on").values
        images.append(heat_map(axis, 100 * R, letters))
        axis.set_title(label(combination))
    outer_labels(axes, columns, "tested on task", "after task")
    colour_bar(figure, axes, images[0], summary["chance"])
    return figure


def heat_map(axis: "Axes", R: Float[np.ndarray, "after on"], letters: float) -> "AxesImage":
    """One matrix in per cent, its untrained row set off, its cells annotated where there is room (letters: points)."""
    T = R.shape[1]
    image = axis.imshow(R, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    axis.axhline(0.5, color=PAPER, linewidth=3)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    tasks = thinned(np.arange(1, T + 1))
    axis.set_xticks(tasks - 1, [str(task) for task in tasks])
    axis.set_yticks([0, *tasks], ["none", *(str(task) for task in tasks)])
    for (after, on), value in np.ndenumerate(R):
        if T <= MANY and np.isfinite(value):
            colour = ON_DARK if value < 47 else ON_LIGHT  # the better contrast on either side
            axis.text(on, after, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=letters)
    if not np.isfinite(R).any():
        axis.text(0.5, 0.5, "no seed finished", transform=axis.transAxes, ha="center", va="center", color=SOFT)
    return image


def colour_bar(figure: "Figure", axes: "list[Axes]", image: "AxesImage", chance: float | None) -> None:
    """The scale of all the panels, with a line at chance in place of any number near it."""
    bar = figure.colorbar(image, ax=axes, label="test accuracy (%)", location="bottom", aspect=35, shrink=0.8)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # an image stays as it is on a dark page
    ticks: dict[float, str] = {level: f"{level}" for level in range(0, 101, 25)}
    if chance is not None:
        bar.ax.axvline(100 * chance, color=ON_DARK, linewidth=2)
        ticks = {level: text for level, text in ticks.items() if abs(level - 100 * chance) > 12}
        ticks[100 * chance] = "chance"
    bar.set_ticks(ticks=list(ticks), labels=list(ticks.values()))
