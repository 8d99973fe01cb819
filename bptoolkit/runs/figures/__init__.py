"""The results as figures: accuracy matrices, every task's and the first task's curve, bars, settling.

One set per scenario, each figure in two layouts: wide for files and screens, narrow for a phone.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bptoolkit.runs.figures.bars import bars
from bptoolkit.runs.figures.choose import heading, names, scenario_of, settling_nets
from bptoolkit.runs.figures.curves import first_task, forgetting, settling
from bptoolkit.runs.figures.look import STYLE, SVG, Drawn, style
from bptoolkit.runs.figures.matrices import matrices
from bptoolkit.runs.record import replacing
from bptoolkit.runs.summary import complete, summarise

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

__all__ = ["KINDS", "STYLE", "Drawn", "figure", "figures", "names", "save_figures", "scenario_of", "write_figures"]

FOLDER = "figures"
FORMATS: dict[str, dict[str, Any]] = {".png": {"format": "png", "dpi": 150}, ".svg": SVG}


class Kind(NamedTuple):
    """A figure's title, and what draws it from the results, the summary of one scenario, and whether it is narrow."""

    title: str
    draw: Callable[["xarray.Dataset", dict[str, Any], bool], "Figure"]


KINDS = {
    "matrices": Kind("Accuracy on each task as training goes on", matrices),
    "forgetting": Kind("Every task's accuracy over training", forgetting),
    "first_task": Kind("What is left of the first task", first_task),
    "bars": Kind("Accuracy and forgetting after the last task", bars),
    "settling": Kind("Settling while training on each task", settling),
}


def save_figures(results: "xarray.Dataset", folder: Path | str) -> dict[str, Path]:
    """Write every figure to `folder`/figures as PNG and SVG; returns the SVG of each name."""
    wide = {name: _laid_out(kind, results, part, narrow=False) for name, kind, part in _each(results)}
    return write_figures(wide, folder)


def write_figures(drawn: "dict[str, Figure]", folder: Path | str) -> dict[str, Path]:
    """Write these figures to `folder`/figures as PNG and SVG; returns the SVG of each name."""
    into = Path(folder) / FOLDER
    into.mkdir(exist_ok=True)
    with style():
        for name, (suffix, options) in itertools.product(drawn, FORMATS.items()):
            with replacing(into / f"{name}{suffix}") as part:
                drawn[name].savefig(part, **options)
    return {name: into / f"{name}.svg" for name in drawn}


def figures(results: "xarray.Dataset") -> dict[str, Drawn]:
    """Every figure by name, "matrices-class": each kind for each scenario; settling where a net settles."""
    return {
        name: Drawn(*(_laid_out(kind, results, part, narrow) for narrow in (False, True)))
        for name, kind, part in _each(results)
    }


def figure(kind: str, results: "xarray.Dataset", scenario: str, *, narrow: bool = False) -> "Figure":
    """One figure of `KINDS`."""
    return _laid_out(kind, results, scenario_of(summarise(results), scenario), narrow)


def _each(results: "xarray.Dataset") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, kind, and the summary of the scenario, of every figure there is to draw."""
    summary = summarise(results)
    for scenario in dict.fromkeys(row["scenario"] for row in summary["rows"]):
        part = scenario_of(summary, scenario)
        for kind in KINDS:
            if kind != "settling" or settling_nets(part):
                yield f"{kind}-{scenario}", kind, part


def _laid_out(kind: str, results: "xarray.Dataset", summary: dict[str, Any], narrow: bool) -> "Figure":
    """One figure with its title, everything put in its place once for all formats."""
    results = results.assign(accuracy=results["accuracy"].where(complete(results)))
    with style():
        figure = KINDS[kind].draw(results, summary, narrow)
        figure.suptitle(f"{KINDS[kind].title}\n({heading(summary)})")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure
