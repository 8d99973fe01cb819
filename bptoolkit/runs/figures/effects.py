"""One net against another: a panel for each run and scenario, a point with its interval for each strategy and net."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bptoolkit.runs.figures.look import COLOURS, MARKERS, SOFT, legend, outer_labels, panels, pick, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


def effects(runs: Mapping[str, list[Row]], base: str, measure: str = "average_accuracy") -> "Figure":
    """Differences from `base` in points, with 95 % intervals.

    Args:
        runs: rows of `runs.contrasts` by the name of the run.
        base: the net that the others are compared with.
        measure: which of the rows' measures.
    """
    scenarios = list(dict.fromkeys(row["scenario"] for rows in runs.values() for row in rows))
    strategies = list(dict.fromkeys(row["strategy"] for rows in runs.values() for row in rows))
    nets = list(dict.fromkeys(row["net"] for rows in runs.values() for row in rows))
    with style():
        figure, axes = panels(len(runs) * len(scenarios), len(scenarios), (3.3, 0.8 + 0.55 * len(strategies)), 0.6)
        places = [(name, scenario) for name in runs for scenario in scenarios]
        for axis, (name, scenario) in zip(axes, places, strict=True):
            shown = [row for row in runs[name] if row["scenario"] == scenario]
            _panel(axis, shown, measure, nets, strategies)
            axis.set_title(f"{name}, {scenario}-incremental")
        for column in range(len(scenarios)):
            _one_scale(axes[column :: len(scenarios)])
        outer_labels(axes, len(scenarios), f"difference from {base} (points)", "")
        legend(figure, axes[0], 4)
        figure.suptitle(f"{measure.replace('_', ' ').capitalize()}: other nets minus {base}, 95 % t-intervals")
    return figure


def _one_scale(axes) -> None:
    """The same differences at the same places in panels that stand above one another and are labelled once."""
    lows, highs = zip(*(axis.get_xlim() for axis in axes), strict=True)
    for axis in axes:
        axis.set_xlim(min(lows), max(highs))


def _panel(axis, rows: list[Row], measure: str, nets: list[str], strategies: list[str]) -> None:
    for i, net in enumerate(nets):
        own = [row for row in rows if row["net"] == net and row[measure]["difference"] is not None]
        y = [strategies.index(row["strategy"]) + 0.6 * (i - (len(nets) - 1) / 2) / len(nets) for row in own]
        mean = [100 * row[measure]["difference"] for row in own]
        half = [100 * (row[measure]["half_width"] or 0) for row in own]
        look = {"color": pick(COLOURS, i), "fmt": pick(MARKERS, i), "capsize": 3, "markersize": 5}
        axis.errorbar(mean, y, xerr=half, label=net, **look)
    axis.axvline(0, color=SOFT, linewidth=1, linestyle="--")
    axis.set(ylim=(len(strategies) - 0.5, -0.5))
    axis.set_yticks(range(len(strategies)), strategies)
