"""Paired differences of several runs: a point with its interval for each combination, beside a line at zero."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bptoolkit.runs.figures.bars import percent
from bptoolkit.runs.figures.look import COLOURS, MARKERS, SOFT, Drawn, legend, panels, pick, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
MEASURES = {"average_accuracy": "average accuracy", "forgetting": "forgetting"}


def differences(rows: list[Row], heading: str) -> Drawn:
    """Average accuracy and forgetting, side by side and, narrow, one above the other."""
    return Drawn(*(_laid_out(rows, heading, narrow) for narrow in (False, True)))


def _laid_out(rows: list[Row], heading: str, narrow: bool) -> "Figure":
    with style():
        figure = _draw(rows, narrow)
        figure.suptitle(heading)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def _draw(rows: list[Row], narrow: bool) -> "Figure":
    places = list(dict.fromkeys((row["net"], row["strategy"]) for row in rows))
    runs = list(dict.fromkeys(row["runs"] for row in rows))
    height = 0.9 + 0.3 * len(places) * max(1.0, 0.6 * len(runs))
    figure, axes = panels(2, 1 if narrow else 2, (4.2 if narrow else 4.6, height), extra=0.7)
    for axis, (metric, title) in zip(axes, MEASURES.items(), strict=True):
        for i, pair in enumerate(runs):
            kept = [row for row in rows if row["runs"] == pair and row[metric]["mean"] is not None]
            offset = 0.6 * (i - (len(runs) - 1) / 2) / len(runs)
            y = [places.index((row["net"], row["strategy"])) + offset for row in kept]
            mean, half = (np.array([percent(row[metric][part]) for row in kept]) for part in ("mean", "half_width"))
            look = {"color": pick(COLOURS, i), "fmt": pick(MARKERS, i), "capsize": 3, "markersize": 5}
            axis.errorbar(mean, y, xerr=half, label=pair, **look)
        axis.axvline(0, color=SOFT, linewidth=1, linestyle="--")
        axis.set(title=title, xlabel="difference (percentage points)", ylim=(len(places) - 0.5, -0.5))
        axis.set_yticks(range(len(places)), [" · ".join(place) for place in places])
        if axis is not axes[0] and not narrow:
            axis.tick_params(labelleft=False)
    legend(figure, axes[0], 4)
    return figure
