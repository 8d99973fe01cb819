"""Lines over the tasks, each the mean over seeds with the band of its interval: accuracies, and settling."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bptoolkit.runs.figures.choose import columns_of, combinations, label, names, settling_nets, values_of
from bptoolkit.runs.figures.look import (
    COLOURS,
    MARKERS,
    SOFT,
    legend,
    outer_labels,
    panels,
    pick,
    thinned,
)
from bptoolkit.runs.summary import SETTLING, interval

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Summary = dict[str, Any]


def forgetting(results: "xarray.Dataset", summary: Summary, narrow: bool) -> "Figure":
    """R[·, on] of every task from before any training to the end, thin until it is trained on: one panel for each net ×
    strategy, a line a task.
    """
    shown, columns = combinations(summary), columns_of(summary, narrow)
    tasks, after = results["on"].values, results["after"].values
    figure, axes = panels(len(shown), columns, (2.05 if narrow else 2.6, 2.2), extra=0.6)
    for axis, combination in zip(axes, shown, strict=True):
        R = 100 * values_of(results, "accuracy", combination, summary).transpose("on", "after", "seed").values
        for i, task in enumerate(tasks):
            look = colour_of(i, len(tasks)), marker_of(i, len(tasks))
            before, then = slice(0, i + 2), slice(i + 1, None)
            axis.plot(after[before], mean_of(R[i, before]), color=look[0], linewidth=0.8, alpha=0.55)
            curve(axis, after[then], R[i, then], f"task {task}", *look)
        chance_line(axis, summary)
        axis.set(title=label(combination), ylim=(-3, 103), xticks=thinned(after))
    outer_labels(axes, columns, "tasks trained on", "test accuracy (%)")
    legend(figure, axes[0], 3 if narrow else 8)
    return figure


def first_task(results: "xarray.Dataset", summary: Summary, narrow: bool) -> "Figure":
    """R[after, 1]: what is left of the first task, one panel for each net, a line a strategy."""
    nets, strategies, tasks = names(summary, "net"), names(summary, "strategy"), results["on"].values
    columns = 1 if narrow else 2
    figure, axes = panels(len(nets), columns, (4.2 if narrow else 3.9, 2.6 if narrow else 3.2), extra=0.6)
    for axis, net in zip(axes, nets, strict=True):
        for i, strategy in enumerate(strategies):
            R = values_of(results, "accuracy", (net, strategy), summary).sel(on=tasks[0], after=tasks)
            values = 100 * R.transpose("after", "seed").values
            curve(axis, tasks, values, strategy, pick(COLOURS, i), pick(MARKERS, i))
        chance_line(axis, summary)
        axis.set(title=net, ylim=(-2, 102), xticks=thinned(tasks))
    outer_labels(axes, columns, "tasks trained on", "test accuracy on task 1 (%)")
    legend(figure, axes[0], 3 if narrow else 6)
    return figure


def settling(results: "xarray.Dataset", summary: Summary, narrow: bool) -> "Figure":
    """Steps and unconverged share while training on each task, forward and backward: a line a strategy."""
    tasks, strategies, nets = results["task"].values, names(summary, "strategy"), settling_nets(summary)
    every = itertools.product(nets, ("steps", "unconverged (%)"), SETTLING)
    shown = [(net, what, way) for net, what, way in every if SETTLING[way][what != "steps"] in results]
    figure, axes = panels(len(shown), 2 if narrow else 4, (2.05 if narrow else 2.7, 2.2), extra=0.6)
    for axis, (net, what, way) in zip(axes, shown, strict=True):
        name, factor = (SETTLING[way][0], 1) if what == "steps" else (SETTLING[way][1], 100)
        for i, strategy in enumerate(strategies):
            values = factor * values_of(results, name, (net, strategy), summary).transpose("task", "seed").values
            curve(axis, tasks, values, strategy, pick(COLOURS, i), pick(MARKERS, i))
        axis.set(title=way if len(nets) == 1 else f"{net}\n{way}", ylabel=what, xticks=thinned(tasks))
        axis.set_xlabel("training on task")
        axis.set_ylim(0, max(axis.get_ylim()[1], 1.0))
    legend(figure, axes[0], 3 if narrow else 6)
    return figure


def curve(axis: "Axes", x: np.ndarray, R: Float[np.ndarray, "x seed"], label: str, colour: str, marker: str) -> None:
    """Mean over the seeds that ran, and the band of its interval; the label stays where nothing ran."""
    mean, half = np.array([interval(seeds) for seeds in ran(R)]).T
    axis.plot(x, mean, color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=label)
    axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)


def mean_of(values: Float[np.ndarray, "x seed"]) -> Float[np.ndarray, "x"]:
    """Mean over the seeds that ran; NaN where none did."""
    return np.array([interval(seeds)[0] for seeds in ran(values)])


def ran(values: Float[np.ndarray, "x seed"]) -> Float[np.ndarray, "x ran"]:
    """The seeds that have every value."""
    return values[:, np.isfinite(values).all(axis=0)]


def colour_of(i: int, count: int) -> str:
    """Of line i: one that is told apart by all, or, where there are more, one of a scale from first to last."""
    if count <= len(COLOURS):
        return COLOURS[i]
    import matplotlib
    from matplotlib.colors import to_hex

    return to_hex(matplotlib.colormaps["viridis"](0.9 * i / (count - 1)))


def marker_of(i: int, count: int) -> str:
    """Of line i; none where there are too many lines."""
    return MARKERS[i] if count <= len(MARKERS) else ""


def chance_line(axis: "Axes", summary: Summary) -> None:
    """Where guessing would be, if it is known."""
    if summary["chance"] is not None:
        axis.axhline(100 * summary["chance"], color=SOFT, linestyle="--", linewidth=1, label="chance")
