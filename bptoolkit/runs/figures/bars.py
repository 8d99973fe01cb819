"""Average accuracy and forgetting with their intervals: one group for each strategy, one bar for each net."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bptoolkit.runs.figures.choose import names
from bptoolkit.runs.figures.curves import chance_line
from bptoolkit.runs.figures.look import COLOURS, HATCHES, INK, PAPER, legend, panels, pick

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {"average_accuracy": "average test accuracy (%)", "forgetting": "forgetting (percentage points)"}


def bars(results: "xarray.Dataset", summary: dict[str, Any], narrow: bool) -> "Figure":
    """One panel for each measure."""
    strategies = names(summary, "strategy")
    size = (4.2, 2.6) if narrow else (max(3.9, 1.0 + 0.9 * len(strategies)), 3.2)
    figure, axes = panels(2, 1 if narrow else 2, size, extra=0.4)
    for axis, (metric, measure) in zip(axes, MEASURES.items(), strict=True):
        grouped_bars(axis, summary, metric)
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.set(ylabel=measure, xticks=range(len(strategies)), xlim=(-0.6, len(strategies) - 0.4))
        axis.set_xticklabels(strategies)
    chance_line(axes[0], summary)
    axes[0].set_ylim(0, 102)
    legend(figure, axes[0], 3 if narrow else 6)
    return figure


def grouped_bars(axis: "Axes", summary: dict[str, Any], metric: str) -> None:
    """Bars of one metric; where it is undefined or was not measured, the reason stands in its place."""
    nets, strategies = names(summary, "net"), names(summary, "strategy")
    width = 0.8 / len(nets)
    for i, net in enumerate(nets):
        rows = [row for row in summary["rows"] if row["net"] == net and row[metric]["mean"] is not None]
        x = [strategies.index(row["strategy"]) + (i - (len(nets) - 1) / 2) * width for row in rows]
        mean, half = (np.array([percent(row[metric][part]) for row in rows]) for part in ("mean", "half_width"))
        look = {"color": pick(COLOURS, i), "hatch": pick(HATCHES, i), "edgecolor": PAPER, "linewidth": 0}
        axis.bar(x, mean, width, label=net, **look)
        axis.errorbar(x, mean, half, fmt="none", ecolor=INK, capsize=3, elinewidth=1)
    reasons = {row[metric]["reason"] for row in summary["rows"] if row[metric]["mean"] is None}
    if reasons:
        text = "; ".join(sorted(reasons))
        axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", backgroundcolor=PAPER)


def percent(value: float | None) -> float:
    """A share in per cent; NaN, which is drawn as nothing, for None."""
    return np.nan if value is None else 100 * value
