"""One self-contained page about a run, written from its folder alone: it needs no network and no other file."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bptoolkit.runs.figures import Drawn, figures, names, scenario_of, write_figures
from bptoolkit.runs.flat import flat
from bptoolkit.runs.latex import latex_tables
from bptoolkit.runs.page import Picture, picture, render, without_lone
from bptoolkit.runs.record import CONFIG, RESULTS, RunError, load_results, read_json, write_text
from bptoolkit.runs.recorded import load_environment
from bptoolkit.runs.summary import complete, save_summary
from bptoolkit.runs.tables import Grid, grids, markdown_tables, remarks, seeds

if TYPE_CHECKING:
    import xarray

__all__ = ["REPORT", "facts", "recorded", "title", "write_report", "write_tables"]

REPORT = "report.html"
CAPTIONS = {
    "matrices": "Rows: the net before any training (none) and after each task; columns: the task whose test set is "
    "asked. A column that darkens downwards is a task being forgotten. Means over seeds, in per cent.",
    "forgetting": "Test accuracy on every task; the line is thin until the task is trained on. Bands are intervals.",
    "first_task": "Test accuracy on the first task from the moment it is learnt to the end; bands are intervals.",
    "bars": "Average accuracy over all tasks, and mean loss of each earlier task since its best, after the last task.",
    "settling": "Mean steps, and share of settlings that stopped before they converged, while training on each task; "
    "bands are intervals.",
}
LONG = ("packages", "earlier")  # of environment.json, not for its table


def write_report(folder: Path | str) -> Path:
    """Write report.html from config.json, environment.json and results.nc.

    Made anew with it: summary.json, figures/ (PNG and SVG), tables.md and tables.tex.

    Raises:
        RunError: when one of the three is missing or damaged, or the folder cannot be written to.
    """
    folder = Path(folder)
    config, environment, results = recorded(folder)
    summary = save_summary(folder, results)
    drawn, tables = figures(results), grids(summary)
    write_figures({name: figure.wide for name, figure in drawn.items()}, folder)
    write_tables(tables, remarks(summary, tables), folder)
    shown = pictures(drawn, results, summary)
    page = render(
        "report.html.j2",
        title=f"{title(config)}: report",
        name=title(config),
        sections=sections(list(shown)),
        summary=summary,
        facts=facts(summary, environment),
        tables={grid.title: without_lone(grid) for grid in tables},
        remarks=remarks(summary, tables),
        pictures=shown,
        config=list(flat(config)),
        environment=list(flat({key: value for key, value in environment.items() if key not in LONG})),
        packages=environment.get("packages") or {},
        command=environment["command"],
        folder=folder.name,
        committed=bool(environment.get("source")),
        state=environment["state"],
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def recorded(folder: Path) -> "tuple[dict[str, Any], dict[str, Any], xarray.Dataset]":
    """Configuration, environment and results of a run folder.

    Raises:
        RunError: when one of them is missing or damaged.
    """
    if not folder.is_dir():
        raise RunError(f"A report is made of a run folder; {folder} is {'a file' if folder.exists() else 'not there'}.")
    config, environment = read_json(folder / CONFIG), load_environment(folder)
    if not isinstance(config.get("experiment"), str):
        raise RunError(f'{folder / CONFIG} must name its "experiment", got the keys {sorted(config)}.')
    return config, environment, whole(load_results(folder), folder / RESULTS)


def whole(results: "xarray.Dataset", path: Path) -> "xarray.Dataset":
    """The results, if tables and figures can be made of them."""
    accuracy, chance = results["accuracy"], np.asarray(results.attrs.get("chance", np.nan))
    shares = accuracy.dtype.kind == "f" and not bool(((accuracy < 0) | (accuracy > 1)).any())
    required = {
        "at least one task, net, strategy and scenario": accuracy.isel(seed=[]).sum("seed").size > 0,
        "accuracy after 0 … T on 1 … T": [*results["after"].values] == [*range(results.sizes["on"] + 1)],
        "accuracies in 0 … 1, or NaN": shares,
        "a chance for each scenario": chance.dtype.kind in "fi" and chance.size in (1, results.sizes["scenario"]),
        "a question in words": isinstance(results.attrs.get("question", ""), str),
    }
    for what, holds in required.items():
        if not holds:
            raise RunError(f"{path} must hold {what}. Delete it and run the experiment again.")
    return results


def write_tables(tables: list[Grid], lines: list[str], folder: Path) -> None:
    """Write tables.md and tables.tex."""
    write_text(folder / "tables.md", markdown_tables(tables, lines))
    write_text(folder / "tables.tex", latex_tables(tables, lines))


def title(config: Mapping[str, Any]) -> str:
    """The experiment's short name."""
    return config["experiment"].rsplit(".", 1)[-1]


def sections(scenarios: list[str]) -> dict[str, str]:
    """The page's parts by the name of their place."""
    accuracies = {f"accuracy-{i}": f"{name.capitalize()}-incremental" for i, name in enumerate(scenarios, start=1)}
    rest = ("Within tasks", "Settling", "Plasticity", "Diagnosis", "Cost", "Hyper-parameters", "Environment")
    return (
        {"results": "Results"}
        | accuracies
        | {name.lower().replace(" ", "-"): name for name in rest}
        | {"repeat": "Repeat it"}
    )


def facts(summary: dict[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """What stands under the title: size, time, place in the repository's history."""
    time, source = elapsed(environment), environment.get("source")
    return [
        "1 task" if summary["tasks"] == 1 else f"{summary['tasks']} tasks",
        seeds(summary),
        *([] if time is None else [f"{'' if time[1] else 'at least '}{time[0]:,.0f} s"]),
        str(environment["started"])[:10],
        *([f"commit {source['commit'][:8]}{' with changes' if source['dirty'] else ''}"] if source else []),
    ]


def pictures(
    drawn: Mapping[str, Drawn], results: "xarray.Dataset", summary: dict[str, Any]
) -> dict[str, dict[str, Picture]]:
    """The figures of each scenario by kind, as they stand in the page."""
    found: dict[str, dict[str, Picture]] = {}
    for name, figure in drawn.items():
        kind, scenario = name.split("-", 1)
        alt = alternative(kind, results, scenario_of(summary, scenario))
        found.setdefault(scenario, {})[kind] = picture(figure, alt, CAPTIONS[kind])
    return found


def alternative(kind: str, results: "xarray.Dataset", summary: dict[str, Any]) -> str:
    """What a figure says, for those who do not see it."""
    setting = f"{summary['scenario']}-incremental"
    shown = f"{' and '.join(names(summary, 'net'))} with {', '.join(names(summary, 'strategy'))}"
    if kind == "matrices":
        return f"Heat maps of {setting} test accuracy on each task after each task, for {shown}."
    if kind == "forgetting":
        return f"Lines of {setting} test accuracy on every task over training, for {shown}."
    if kind == "first_task":
        last = results["accuracy"].where(complete(results)).isel(after=-1, on=0).mean("seed")
        left = {way(row): last.sel({axis: row[axis] for axis in last.dims}).item() for row in summary["rows"]}
        return f"Lines of {setting} test accuracy on the first task; after the last task: {listed(left)}."
    if kind == "settling":
        rows = [row for row in summary["rows"] if row["settling"] is not None]
        unsettled = {way(row): row["settling"]["forward"]["unconverged"]["mean"] for row in rows}
        return (
            f"Lines of {setting} settling steps and unconverged shares by task; forward, in all: {listed(unsettled)}."
        )
    means = {way(row): row["average_accuracy"]["mean"] for row in summary["rows"]}
    lost = {way(row): row["forgetting"]["mean"] for row in summary["rows"]}
    return f"Bars of {setting} average accuracy: {listed(means)}; and of forgetting: {listed(lost)}."


def way(row: dict[str, Any]) -> str:
    """Net and strategy of a row."""
    return f"{row['net']} {row['strategy']}"


def listed(shares: Mapping[str, float | None]) -> str:
    """Shares by name, in whole per cent."""
    return ", ".join(
        f"{name} {'undefined' if share is None else f'{100 * share:.0f} %'}" for name, share in shares.items()
    )


def elapsed(environment: Mapping[str, Any]) -> tuple[float, bool] | None:
    """Seconds of all starts, and whether the end of each is known; None for a run that has not ended.

    A start that was killed has left no end, and does not count.
    """
    if environment["ended"] is None:
        return None
    starts = [*(environment.get("earlier") or ()), environment]
    times = [(start.get("started"), start.get("ended")) for start in starts]
    known = [[datetime.fromisoformat(moment) for moment in span] for span in times if all(span)]
    return sum((ended - started).total_seconds() for started, ended in known), len(known) == len(times)
