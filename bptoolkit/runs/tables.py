"""The results as tables, for the terminal (rich), for the README (GitHub Markdown) and for the report.

All three are made from one `Grid` of one summary, so they cannot disagree.  Accuracies are per cent, differences of
accuracies percentage points.  A number that is missing is a dash with a numbered reason; a settling that did not
converge is marked.
"""

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Row = dict[str, Any]
DASH = "–"
COST = (
    "FLOPs are of one prediction; ms is per 1000 predictions; the other times are seconds. Memory is what one net's "
    "strategy keeps beside weights and optimiser; peak is the temporary memory of the largest program on one device."
)
EXPLAINED = {
    "Within tasks": "Of tests within the tasks: how far a task falls while the next is learned, and recovers "
    "(stability gap); the mean of each earlier task's lowest accuracy after it was learned; and the bound that this "
    "puts on the average accuracy. Under joint each stage begins with a new net, whose falls these are.",
    "Plasticity": "Plasticity, after the first and the last task: dormant hidden units in %, effective rank of the "
    "last hidden layer, norm of the weights.",
    "Diagnosis": "Diagnosis, after the last task, means over tasks: accuracy where all active outputs compete (plain), "
    "where only the task's own do (masked), of the nearest class mean of the features, and of a linear probe fitted to "
    "them on training rows of all tasks; expected calibration error in points, of the rows of one task at a time.",
}
ALARM = "! Some settlings did not converge: states and gradients there are not those of a fixed point."


class Shown(NamedTuple):
    """One cell: its text, the reason for what is missing, whether it must catch the eye, and what it is sorted by."""

    text: str
    note: str | None = None
    alarm: bool = False
    value: float | None = None


class Column(NamedTuple):
    """A heading and what it shows of a row of the summary."""

    title: str
    show: Callable[[Row], Shown]
    number: bool = True


class Grid(NamedTuple):
    """A table before it is drawn; notes are shared by the grids of one summary and numbered from 1."""

    title: str
    columns: list[Column]
    cells: list[list[Shown]]
    notes: list[str]

    def text(self, cell: Shown) -> str:
        """The cell with its mark of alarm and the number of its note."""
        mark = superscript(self.notes.index(cell.note) + 1) if cell.note else ""
        return f"{'! ' if cell.alarm else ''}{cell.text}{mark}"


def percent(name: str) -> Callable[[Row], Shown]:
    """Show an estimate as per cent."""
    return lambda row: estimate(row[name], 100.0)


def settling(way: str, name: str) -> Callable[[Row], Shown]:
    """Show steps, or the unconverged share, of the forward or the backward settling."""
    form = {"steps": estimate, "unconverged": share}[name]
    return lambda row: form(row["settling"][way][name])


def plasticity(name: str, when: str, factor: float = 1.0) -> Callable[[Row], Shown]:
    """Show a figure of how much of the net is alive, after the first or the last task."""
    return lambda row: estimate(row["plasticity"][name][when], factor)


def diagnosis(name: str) -> Callable[[Row], Shown]:
    """Show what tells why the net answers wrongly, as per cent."""
    return lambda row: estimate(row["diagnosis"][name], 100.0)


def within(name: str) -> Callable[[Row], Shown]:
    """Show what only tests within the tasks tell, as per cent."""
    return lambda row: estimate(row["within"][name], 100.0)


def cost(name: str, form: Callable[[float], str]) -> Callable[[Row], Shown]:
    """Show one number without an interval."""
    return lambda row: Shown(DASH, "not measured") if row.get(name) is None else Shown(form(row[name]), value=row[name])


def estimate(entry: dict[str, Any], factor: float = 1.0) -> Shown:
    """Mean ± half-width to one decimal, to two where the half-width would show as 0."""
    if entry["mean"] is None:
        return Shown(DASH, entry["reason"])
    half = math.nan if entry["half_width"] is None else factor * entry["half_width"]
    decimals = 2 if half < 0.05 else 1
    width = DASH if math.isnan(half) else f"{half:.{decimals}f}"
    value = factor * entry["mean"]
    return Shown(f"{signed(value, decimals)} ± {width}", entry["reason"], value=value)


def share(entry: dict[str, Any]) -> Shown:
    """A share that should be 0: any that is not raises the alarm, however small."""
    if entry["mean"] is None:
        return Shown(DASH, entry["reason"])
    value = 100 * entry["mean"]
    text = "0 %" if value == 0 else "< 0.1 %" if value < 0.1 else f"{value:.1f} %"
    return Shown(text, alarm=value > 0, value=value)


def signed(value: float, decimals: int) -> str:
    """A number with a true minus sign, and no minus before 0."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def measured(value: float) -> str:
    """Three digits or so: 0.42, 12.3, 1,234."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}"


def binary(value: float) -> str:
    """Bytes as such, as KiB or as MiB."""
    if value < 1024:
        return f"{value:.0f} B"
    return f"{measured(value / 1024)} KiB" if value < 1024**2 else f"{measured(value / 1024**2)} MiB"


def superscript(number: int) -> str:
    """12 as ¹²."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


LABELS = [
    Column(name.capitalize(), lambda row, name=name: Shown(row[name]), number=False)
    for name in ("scenario", "net", "strategy")
]
RESULTS = [
    Column("Average accuracy", percent("average_accuracy")),
    Column("Learning accuracy", percent("learning_accuracy")),
    Column("Forgetting", percent("forgetting")),
    Column("Backward transfer", percent("backward_transfer")),
    Column("Train–test gap", percent("train_test_gap")),
]
SETTLINGS = [
    Column("Forward steps", settling("forward", "steps")),
    Column("Forward unconverged", settling("forward", "unconverged")),
    Column("Backward steps", settling("backward", "steps")),
    Column("Backward unconverged", settling("backward", "unconverged")),
]
WITHIN = [
    Column("Stability gap", within("stability_gap")),
    Column("Minimum accuracy", within("minimum_accuracy")),
    Column("Worst-case accuracy", within("worst_case_accuracy")),
]
PLASTICITIES = [
    Column(f"{title}, {when} task", plasticity(name, when, factor))
    for title, name, factor in (
        ("Dormant", "dormant", 100.0),
        ("Rank", "effective_rank", 1.0),
        ("Norm", "weight_norm", 1.0),
    )
    for when in ("first", "last")
]
DIAGNOSES = [
    Column("Plain", diagnosis("plain")),
    Column("Masked", diagnosis("masked")),
    Column("Nearest mean", diagnosis("nearest_mean")),
    Column("Linear probe", diagnosis("linear_probe")),
    Column("Calibration error", diagnosis("calibration_error")),
]
COSTS = [
    Column("Parameters", cost("parameters", "{:,}".format)),
    Column("FLOPs", cost("flops", "{:,.0f}".format)),
    Column("ms per 1000", cost("ms_per_1000", measured)),
    Column("Seconds", cost("seconds", measured)),
    Column("Compiling", cost("compile_seconds", measured)),
    Column("Memory", cost("memory_bytes", binary)),
    Column("Peak", cost("peak_bytes", binary)),
]


TABLES = {
    "Results": RESULTS,
    "Within tasks": WITHIN,
    "Settling": SETTLINGS,
    "Plasticity": PLASTICITIES,
    "Diagnosis": DIAGNOSES,
    "Cost": COSTS,
}
PARTIAL = {
    "Within tasks": "within",
    "Settling": "settling",
    "Plasticity": "plasticity",
    "Diagnosis": "diagnosis",
}  # of those rows alone that have this


def grids(summary: dict[str, Any]) -> list[Grid]:
    """The tables of a summary; all but results and cost only where there is anything in them."""
    return numbered(with_rows(summary["rows"], LABELS))


def with_rows(rows: list[Row], labels: list[Column]) -> dict[str, tuple[list[Column], list[Row]]]:
    """Columns and rows of every table, those of partial ones only where there are any."""
    has = lambda row, title: title not in PARTIAL or row.get(PARTIAL[title]) is not None
    shown = {title: [row for row in rows if has(row, title)] for title in TABLES}
    return {title: (labels + TABLES[title], rows) for title, rows in shown.items() if rows or title not in PARTIAL}


def numbered(tables: dict[str, tuple[list[Column], list[Row]]]) -> list[Grid]:
    """Tables by title, of columns and rows, whose notes are numbered through in order of appearance."""
    cells = {
        title: [[column.show(row) for column in columns] for row in rows] for title, (columns, rows) in tables.items()
    }
    every = itertools.chain.from_iterable(itertools.chain(*cells.values()))
    notes = list(dict.fromkeys(cell.note for cell in every if cell.note))
    return [Grid(title, columns, cells[title], notes) for title, (columns, _) in tables.items()]


def remarks(summary: dict[str, Any], drawn: list[Grid]) -> list[str]:
    """What must be read with the tables: interval, numbered reasons, alarm, what diverged and what was not run."""
    half_width = f"± is the half-width of the {100 * summary['level']:g} % t-interval over {seeds(summary)}."
    return [
        half_width if summary["seeds"] > 1 else "One seed: there are no intervals.",
        "Accuracies are per cent of test rows; forgetting, transfer and gap are percentage points.",
        COST,
        *explained(drawn),
        *marks(drawn),
        *left_out(summary),
    ]


def left_out(summary: dict[str, Any]) -> list[str]:
    """What diverged, and what was not run."""
    lines = []
    if lost := summary.get("diverged"):
        told = (f"{'/'.join(names)} ({seeds} of {summary['seeds']})" for *names, seeds in lost)
        lines.append(f"Seeds whose weights became NaN or infinite are left out: {', '.join(told)}.")
    if summary["not_run"]:
        lines.append(f"Not run: {', '.join('/'.join(names) for names in summary['not_run'])}.")
    return lines


def explained(drawn: list[Grid]) -> list[str]:
    """What the figures of those tables are that not every run has."""
    return [EXPLAINED[grid.title] for grid in drawn if grid.title in EXPLAINED]


def marks(drawn: list[Grid]) -> list[str]:
    """The numbered reasons, and the alarm if any cell raises it."""
    alarm = any(cell.alarm for grid in drawn for row in grid.cells for cell in row)
    notes = [f"{superscript(i)} {note}." for i, note in enumerate(drawn[0].notes, start=1)]
    return notes + [ALARM] * alarm


def seeds(summary: dict[str, Any]) -> str:
    """How many seeds, in words."""
    return "1 seed" if summary["seeds"] == 1 else f"{summary['seeds']} seeds"


def terminal_table(summary: dict[str, Any]) -> "Group":
    """Results, settling and cost as rich tables, readable from 100 columns on, and what must be read with them."""
    from rich.console import Group
    from rich.text import Text

    drawn = grids(summary)
    return Group(*map(rich_table, drawn), *(Text(line, style="dim") for line in remarks(summary, drawn)))


def rich_table(grid: Grid) -> "Table":
    """One grid for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=grid.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in grid.columns:
        table.add_column(column.title, justify="right" if column.number else "left", overflow="fold")
    for row in grid.cells:
        table.add_row(*(Text(grid.text(cell), style="bold red" if cell.alarm else "") for cell in row))
    return table


def markdown_table(summary: dict[str, Any]) -> str:
    """Results, settling and cost as GitHub Markdown, for a README made from a committed summary."""
    drawn = grids(summary)
    return markdown_tables(drawn, remarks(summary, drawn))


def markdown_tables(grids: list[Grid], remarks: list[str]) -> str:
    """Tables as GitHub Markdown, and below them what must be read with them."""
    return "\n".join([*map(markdown_grid, grids), "\n".join(f"- {line}" for line in remarks), ""])


def markdown_grid(grid: Grid) -> str:
    """One grid in pipes; an alarm is bold."""
    lines = [[column.title for column in grid.columns], ["--:" if column.number else ":--" for column in grid.columns]]
    lines += [[f"**{grid.text(cell)}**" if cell.alarm else grid.text(cell) for cell in row] for row in grid.cells]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines) + "\n"
