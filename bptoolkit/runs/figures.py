"""The results as figures: accuracy matrices, the fate of the first task, and bars with intervals.

One set per scenario.  Matplotlib's object interface only: no `pyplot`, no window, no state left behind.  Colours are
Okabe and Ito's (2008), told apart by every kind of colour vision; markers and hatches say the same again.
"""

import itertools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bptoolkit.runs.record import replacing
from bptoolkit.runs.summary import complete, interval, summarise

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Summary = dict[str, Any]
FOLDER = "figures"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")
FORMATS = {".png": {"dpi": 150}, ".svg": {"metadata": {"Date": None}}}  # no date: the same figure is the same file
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "bptoolkit",
}
ANNOTATED = 10  # tasks up to which a cell of a heat map has room for its number


def save_figures(results: "xarray.Dataset", folder: Path | str) -> dict[str, Path]:
    """Write every figure to `folder`/figures as PNG and SVG; returns the SVG of each name."""
    into = Path(folder) / FOLDER
    into.mkdir(exist_ok=True)
    drawn = figures(results)
    with style():
        for figure in drawn.values():  # laid out once, for both formats
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        for name, (suffix, options) in itertools.product(drawn, FORMATS.items()):
            with replacing(into / f"{name}{suffix}") as part:
                drawn[name].savefig(part, format=suffix[1:], **options)
    return {name: into / f"{name}.svg" for name in drawn}


def figures(results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Every figure by name: matrices-class, first_task-class, bars-class, and so for each scenario that was run."""
    summary = summarise(results)
    results = results.assign(accuracy=results["accuracy"].where(complete(results["accuracy"])))
    with style():
        return {
            f"{kind}-{scenario}": draw(results, scenario_of(summary, scenario))
            for scenario in dict.fromkeys(row["scenario"] for row in summary["rows"])
            for kind, draw in KINDS.items()
        }


def accuracy_matrices(results: "xarray.Dataset", summary: Summary) -> "Figure":
    """R[after, on] as heat maps, mean over seeds, one panel per net × strategy; the first row is the untrained net."""
    nets, strategies = names(summary, "net"), names(summary, "strategy")
    side = max(0.9 + 0.34 * min(results.sizes["on"], ANNOTATED), 2.2)
    inches = ((side - 0.3) * len(strategies) + 2.4, (side + 0.4) * len(nets) + 0.6)
    figure, axes = panels(len(nets), len(strategies), inches, share=True)
    images = []
    for axis, (net, strategy) in zip(axes.flat, itertools.product(nets, strategies), strict=True):
        accuracy = results["accuracy"].sel(net=net, strategy=strategy, scenario=summary["scenario"])
        images.append(heat_map(axis, 100 * accuracy.mean("seed").transpose("after", "on").values))
        axis.set_title(f"{net} · {strategy}")
    for axis in axes[:, 0]:
        axis.set_ylabel("after training on task")
    for axis in axes[-1]:
        axis.set_xlabel("tested on task")
    colour_bar(figure, axes, images[0], summary["chance"])
    figure.suptitle(f"Accuracy on each task as training goes on\n({summary['scenario']}-incremental, mean over seeds)")
    return figure


def colour_bar(figure: "Figure", axes: np.ndarray, image: "AxesImage", chance: float | None) -> None:
    """The scale of all the panels, with a white line at chance in place of any number near it."""
    bar = figure.colorbar(image, ax=axes, label="test accuracy (%)", aspect=30)
    ticks: dict[float, str] = {level: f"{level}" for level in range(0, 101, 25)}
    if chance is not None:
        bar.ax.axhline(100 * chance, color="white", linewidth=2)
        ticks = {level: text for level, text in ticks.items() if abs(level - 100 * chance) > 4}
        ticks[100 * chance] = "chance"
    bar.set_ticks(ticks=list(ticks), labels=list(ticks.values()))


def heat_map(axis: "Axes", R: Float[np.ndarray, "after on"]) -> "AxesImage":
    """One matrix in per cent, its untrained row set off, its cells annotated where there is room."""
    T = R.shape[1]
    image = axis.imshow(R, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    axis.axhline(0.5, color="white", linewidth=3)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    tasks = thinned(np.arange(1, T + 1))
    axis.set_xticks(tasks - 1, [str(task) for task in tasks])
    axis.set_yticks([0, *tasks], ["untrained", *(str(task) for task in tasks)])
    for (after, on), value in np.ndenumerate(R):
        if T <= ANNOTATED and np.isfinite(value):
            colour = "white" if value < 47 else "black"  # the better contrast on either side
            axis.text(on, after, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
    if not np.isfinite(R).any():
        axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", va="center", color="dimgrey")
    return image


def first_task(results: "xarray.Dataset", summary: Summary) -> "Figure":
    """R[after, 1]: what is left of the first task, one panel per net, one line with its band per strategy."""
    nets, strategies = names(summary, "net"), names(summary, "strategy")
    tasks = results["on"].values
    figure, axes = panels(1, len(nets), (max(4.2 * len(nets), 5.0), 3.9), share=True)
    for axis, net in zip(axes.flat, nets, strict=True):
        for i, strategy in enumerate(strategies):
            where = {"net": net, "strategy": strategy, "scenario": summary["scenario"]}
            R = results["accuracy"].sel(on=tasks[0], after=tasks, **where).transpose("after", "seed").values
            curve(axis, tasks, 100 * R, strategy, i)
        chance_line(axis, summary)
        axis.set(title=net, xlabel="after training on task", ylim=(0, 102), xticks=thinned(tasks))
    axes[0, 0].set_ylabel("test accuracy on task 1 (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"What is left of the first task ({heading(summary)})")
    return figure


def curve(axis: "Axes", x: np.ndarray, values: Float[np.ndarray, "x seed"], label: str, i: int) -> None:
    """Mean over the seeds that ran, and the band of its interval; the label stays where nothing ran."""
    kept = values[:, np.isfinite(values).all(axis=0)]
    mean, half = np.array([interval(seeds) for seeds in kept]).T
    axis.plot(x, mean, color=pick(COLOURS, i), marker=pick(MARKERS, i), markersize=5, label=label)
    axis.fill_between(x, mean - half, mean + half, color=pick(COLOURS, i), alpha=0.2, linewidth=0)


def bars(results: "xarray.Dataset", summary: Summary) -> "Figure":
    """Average accuracy and forgetting with their intervals: one group per strategy, one bar per net."""
    strategies = names(summary, "strategy")
    figure, axes = panels(1, 2, (2 * max(3.2, 1.0 + 0.9 * len(strategies)), 3.9))
    measures = {"average_accuracy": "average test accuracy (%)", "forgetting": "forgetting (percentage points)"}
    for axis, (metric, label) in zip(axes.flat, measures.items(), strict=True):
        grouped_bars(axis, summary, metric)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(ylabel=label, xticks=range(len(strategies)), xlim=(-0.6, len(strategies) - 0.4))
        axis.set_xticklabels(strategies)
    chance_line(axes[0, 0], summary)
    axes[0, 0].set_ylim(0, 102)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"Accuracy and forgetting after the last task ({heading(summary)})")
    return figure


def grouped_bars(axis: "Axes", summary: Summary, metric: str) -> None:
    """Bars of one metric; where it is undefined or was not measured, the reason stands in its place."""
    nets, strategies = names(summary, "net"), names(summary, "strategy")
    width = 0.8 / len(nets)
    for i, net in enumerate(nets):
        rows = [row for row in summary["rows"] if row["net"] == net and row[metric]["mean"] is not None]
        x = [strategies.index(row["strategy"]) + (i - (len(nets) - 1) / 2) * width for row in rows]
        mean, half = (np.array([percent(row[metric][part]) for row in rows]) for part in ("mean", "half_width"))
        look = {"color": pick(COLOURS, i), "hatch": pick(HATCHES, i), "edgecolor": "white", "linewidth": 0}
        axis.bar(x, mean, width, label=net, **look)
        axis.errorbar(x, mean, half, fmt="none", ecolor="black", capsize=3, elinewidth=1)
    reasons = {row[metric]["reason"] for row in summary["rows"] if row[metric]["mean"] is None}
    if reasons:
        text = "; ".join(sorted(reasons))
        axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", backgroundcolor="white")


def chance_line(axis: "Axes", summary: Summary) -> None:
    """Where guessing would be, if it is known."""
    if summary["chance"] is not None:
        axis.axhline(100 * summary["chance"], color="dimgrey", linestyle="--", linewidth=1, label="chance")


def scenario_of(summary: Summary, scenario: str) -> Summary:
    """The summary of one scenario alone: its rows and its level of chance."""
    rows = [row for row in summary["rows"] if row["scenario"] == scenario]
    return summary | {"scenario": scenario, "rows": rows, "chance": summary["chance"][scenario]}


def names(summary: Summary, axis: str) -> list[str]:
    """The nets, or the strategies, that were run, in the order of the results."""
    return list(dict.fromkeys(row[axis] for row in summary["rows"]))


def heading(summary: Summary) -> str:
    """What every title says of the data behind it."""
    spread = f"{summary['seeds']} seeds, {100 * summary['level']:g} % t-intervals" if summary["seeds"] > 1 else "1 seed"
    return f"{summary['scenario']}-incremental, {spread}"


def panels(rows: int, columns: int, inches: tuple[float, float], share: bool = False) -> "tuple[Figure, np.ndarray]":
    """An empty figure and its panels[row, column], which may share their axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)


def style() -> AbstractContextManager[None]:
    """Our settings of matplotlib while a figure is drawn, and the user's again afterwards."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def thinned(tasks: np.ndarray) -> np.ndarray:
    """Task numbers for an axis: all, or every fifth of many."""
    return tasks if len(tasks) <= ANNOTATED else tasks[4::5]


def percent(value: float | None) -> float:
    """A share in per cent; NaN, which is drawn as nothing, for None."""
    return np.nan if value is None else 100 * value


def pick(values: "tuple[str, ...] | str", i: int) -> str:
    """The i-th value, starting again after the last."""
    return values[i % len(values)]


KINDS = {"matrices": accuracy_matrices, "first_task": first_task, "bars": bars}
