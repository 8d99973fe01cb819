"""One self-contained page about a run, written from its folder alone: it needs no network and no other file."""

import base64
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bptoolkit.runs.figures import names, save_figures, scenario_of
from bptoolkit.runs.flat import flat
from bptoolkit.runs.record import CONFIG, ENVIRONMENT, load_results, read_json, write_text
from bptoolkit.runs.summary import save_summary
from bptoolkit.runs.tables import grids, remarks, seeds

if TYPE_CHECKING:
    import xarray

REPORT = "report.html"
TEMPLATE = "report.html.j2"
CAPTIONS = {
    "matrices": "Rows: the net before any training and after each task; columns: the task whose test set is asked. A "
    "column that darkens downwards is a task being forgotten. Means over seeds, in per cent.",
    "first_task": "Test accuracy on the first task from the moment it is learnt to the end; bands are intervals.",
    "bars": "Average accuracy over all tasks, and mean loss of each earlier task since its best, after the last task.",
}


class Picture(NamedTuple):
    """A figure inside the page."""

    source: str  # a data URI
    alt: str
    caption: str


def write_report(folder: Path | str) -> Path:
    """Write report.html from config.json, environment.json and results.nc; summary.json and figures/ are made anew.

    Raises:
        RunError: when one of the three is missing or damaged.
    """
    folder = Path(folder)
    config, environment, results = read_json(folder / CONFIG), read_json(folder / ENVIRONMENT), load_results(folder)
    summary = save_summary(folder, results)
    drawn = grids(summary)
    page = render(
        name=config["experiment"].rsplit(".", 1)[-1],
        summary=summary,
        seeds=seeds(summary),
        tables={grid.title: grid for grid in drawn},
        remarks=remarks(summary, drawn),
        pictures=pictures(results, summary, folder),
        config=list(flat(config)),
        environment=list(flat({key: value for key, value in environment.items() if key != "packages"})),
        packages=environment["packages"],
        command=environment["command"],
        state=environment["state"],
        seconds=elapsed(environment),
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def render(**context: Any) -> str:
    """Fill the template that lies in this package; all text is escaped, a missing name is an error."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    template = files("bptoolkit.runs").joinpath(TEMPLATE).read_text(encoding="utf-8")
    html = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return html.from_string(template).render(context)


def pictures(results: "xarray.Dataset", summary: dict[str, Any], folder: Path) -> dict[str, list[Picture]]:
    """The figures of each scenario, drawn into the folder and read into the page."""
    found: dict[str, list[Picture]] = {}
    for name, path in save_figures(results, folder).items():
        kind, scenario = name.split("-", 1)
        alt = alternative(kind, results, scenario_of(summary, scenario))
        source = "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
        found.setdefault(scenario, []).append(Picture(source, alt, CAPTIONS[kind]))
    return found


def alternative(kind: str, results: "xarray.Dataset", summary: dict[str, Any]) -> str:
    """What a figure says, for those who do not see it."""
    setting = f"{summary['scenario']}-incremental"
    if kind == "matrices":
        shown = " and ".join(names(summary, "net")), ", ".join(names(summary, "strategy"))
        return f"Heat maps of {setting} test accuracy on each task after each task, for {shown[0]} with {shown[1]}."
    if kind == "first_task":
        last = results["accuracy"].isel(after=-1, on=0).mean("seed")
        left = {way(row): last.sel({axis: row[axis] for axis in last.dims}).item() for row in summary["rows"]}
        return f"Lines of {setting} test accuracy on the first task; after the last task: {listed(left)}."
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


def elapsed(environment: Mapping[str, Any]) -> float | None:
    """Seconds from start to end; None for a run that has not ended."""
    if environment["ended"] is None:
        return None
    started, ended = (datetime.fromisoformat(environment[key]) for key in ("started", "ended"))
    return (ended - started).total_seconds()
