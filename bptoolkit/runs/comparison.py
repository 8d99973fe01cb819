"""The page about several runs: paired differences first, then what each found, cost, and how the runs differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bptoolkit.runs.compare import surroundings
from bptoolkit.runs.figures import write_figures
from bptoolkit.runs.figures.differences import differences
from bptoolkit.runs.figures.look import Drawn
from bptoolkit.runs.page import Picture, picture, render, without_lone
from bptoolkit.runs.paired import Side, compare, load_sides, settings_that_differ
from bptoolkit.runs.record import CONFIG, RunError, write_json, write_text
from bptoolkit.runs.report import REPORT, facts, title, write_tables
from bptoolkit.runs.summary import LEVEL
from bptoolkit.runs.tables import (
    COST,
    LABELS,
    Column,
    Grid,
    Shown,
    explained,
    left_out,
    marks,
    numbered,
    percent,
    with_rows,
)

__all__ = ["write_comparison"]

COMPARISON = "comparison.json"
RUN = Column("Run", lambda row: Shown(row["run"]), number=False)
DIFFERENCES = [
    Column("Runs", lambda row: Shown(row["runs"]), number=False),
    Column("Pairs", lambda row: Shown(str(row["pairs"]), value=row["pairs"])),
    Column("Average accuracy", percent("average_accuracy")),
    Column("Learning accuracy", percent("learning_accuracy")),
    Column("Forgetting", percent("forgetting")),
    Column("Backward transfer", percent("backward_transfer")),
]
SECTIONS = {
    "runs": "Runs",
    "differences": "Differences",
    "results": "Results",
    "within-tasks": "Within tasks",
    "settling": "Settling",
    "plasticity": "Plasticity",
    "diagnosis": "Diagnosis",
    "cost": "Cost",
    "hyper-parameters": "Hyper-parameters",
    "environment": "Environment",
    "repeat": "Repeat them",
}


def write_comparison(folders: Sequence[Path | str], into: Path | str) -> Path:
    """Write report.html, comparison.json, tables.md, tables.tex and figures/ on runs, all against the first.

    Raises:
        RunError: folders that are no runs, a place that holds other things, or one that cannot be written to.
    """
    sides = load_sides(folders)
    found = compare(sides)
    tables = tables_of(sides, found["rows"])
    lines = remarks(sides, tables, found["alone"])
    into = made(Path(into))
    drawn = figures_of(found["rows"])
    write_json(into / COMPARISON, {"runs": {side.letter: str(side.folder) for side in sides}} | found)
    write_figures({name: figure.wide for name, figure in drawn.items()}, into)
    write_tables(tables, lines, into)
    page = render(
        "comparison.html.j2",
        title="Comparison of " + ", ".join(side.folder.name for side in sides),
        sections=SECTIONS,
        sides=[(side, title(side.config), facts(side.summary, side.environment)) for side in sides],
        questions=list(dict.fromkeys(side.summary["question"] for side in sides if side.summary["question"])),
        tables={grid.title: without_lone(grid) for grid in tables},
        remarks=lines,
        pictures=pictures(drawn, found["rows"]),
        settings=settings_grid(sides),
        around={side.letter: surroundings(sides[0].folder, side.folder) for side in sides[1:]},
    )
    write_text(into / REPORT, page)
    return into / REPORT


def made(folder: Path) -> Path:
    """The folder, made if it is missing; it is new, empty or an earlier comparison's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise RunError(
            f"The comparison cannot be written to {folder} ({error.strerror}). Name another folder."
        ) from error
    if CONFIG in held or (held and COMPARISON not in held):
        what = "a run" if CONFIG in held else min(held)
        raise RunError(f"A comparison needs a folder of its own; {folder} holds {what}. Name another, or a new one.")
    return folder


def tables_of(sides: Sequence[Side], rows: list[dict[str, Any]]) -> list[Grid]:
    """Differences, and the tables of all runs, each row with the letter of its run."""
    every = [row | {"run": side.letter} for side in sides for row in side.summary["rows"]]
    order = list(dict.fromkeys((row["scenario"], row["net"], row["strategy"]) for row in every))
    every.sort(key=lambda row: order.index((row["scenario"], row["net"], row["strategy"])))
    return numbered({"Differences": (LABELS + DIFFERENCES, rows)} | with_rows(every, [*LABELS, RUN]))


def remarks(sides: Sequence[Side], tables: list[Grid], alone: list[str]) -> list[str]:
    """What must be read with the tables."""
    return [
        f"± is the half-width of the {100 * LEVEL:g} % t-interval: of a difference, over the pairs of seeds; "
        "of a result, over the seeds of its run.",
        "Each interval is for one difference alone: among many, some leave out 0 by chance.",
        "Accuracies are per cent of test rows; differences, forgetting, transfer and gap are percentage points.",
        COST,
        *explained(tables),
        *marks(tables),
        *(f"{side.letter}: {line}" for side in sides for line in left_out(side.summary)),
        *([f"No pair: {'; '.join(alone)}."] if alone else []),
    ]


def figures_of(rows: list[dict[str, Any]]) -> dict[str, Drawn]:
    """One figure for each scenario in which there is a difference."""
    known = [row for row in rows if row["average_accuracy"]["mean"] is not None]
    return {
        f"differences-{scenario}": differences(
            [row for row in known if row["scenario"] == scenario],
            f"Paired differences\n({scenario}-incremental, {100 * LEVEL:g} % t-intervals)",
        )
        for scenario in dict.fromkeys(row["scenario"] for row in known)
    }


def pictures(drawn: Mapping[str, Drawn], rows: list[dict[str, Any]]) -> list[Picture]:
    """The figures, with what they show in words."""
    caption = "Right of zero, the later run has more. Whiskers are intervals over the pairs of seeds."
    found = []
    for name, figure in drawn.items():
        scenario = name.split("-", 1)[1]
        told = ", ".join(
            f"{row['runs']} {row['net']} {row['strategy']} {100 * row['average_accuracy']['mean']:+.1f}"
            for row in rows
            if row["scenario"] == scenario and row["average_accuracy"]["mean"] is not None
        )
        found.append(picture(figure, f"Paired differences of average accuracy, in points: {told}.", caption))
    return found


def settings_grid(sides: Sequence[Side]) -> Grid:
    """The fields in which the configurations differ, a column for each run."""
    columns = [Column("Field", lambda row: Shown(row["field"]), number=False)]
    columns += [
        Column(side.letter, lambda row, i=i: Shown(row["values"][i]), number=False) for i, side in enumerate(sides)
    ]
    rows = [{"field": field, "values": values} for field, values in settings_that_differ(sides)]
    return numbered({"Hyper-parameters": (columns, rows)})[0]
