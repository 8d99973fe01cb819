"""A published table beside what was measured: difference, and how many combined standard errors that is.

    SEM = √(σ²/(n − 1)),  σ² the population variance (as van de Ven et al. state it; it is s/√n)
    z   = (measured − published) / √(SEM_m² + SEM_p²)

Where no SEM_p was published, the published seeds are taken to scatter as the measured ones: SEM_p = s/√(their number).

A figure carries where it was read: "src" the authors' code, "ft" the paper's text, "3p" an independent transcription,
"fig" read off a figure (± 0.5), "rec" from general knowledge, unverified.  "fig" and "rec" are targets to look at.
What nobody has published is held against another table's runs of the same seeds, "own", pair by pair.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.streams import Scenario

__all__ = ["Cell", "Column", "Figure", "Table", "as_data", "compared", "from_data", "paired", "sem", "text_table"]

MARKS = ("src", "ft", "3p", "fig", "rec", "own")
UNVERIFIED = ("fig", "rec")
NEAR = 1.5  # points that no one calls a difference


class Figure(NamedTuple):
    """A published number."""

    mean: float
    sem: float | None  # None where none was published
    mark: str  # one of MARKS


class Column(NamedTuple):
    """What a column reports: of which runs, and which number of their results."""

    scenario: Scenario
    score: Callable[[Any], np.ndarray]  # of a Result, or of what has its accuracy and its untrained row


class Table(NamedTuple):
    """A published table, and the protocol that its numbers come from.

    define: of (method, scenario); the experiment to the protocol's letter, or None where the method has no such run.
    deviations: of (method, scenario): what is not to the letter; empty where all is.
    unit: of the figures, in points: 1 for %, 0.01 for shares.
    seeds: behind each published figure that has no standard error.
    weight: of a method, how many times the updates of plain training it costs, for estimates.
    peer: the table, "paper/table", whose runs of the same seeds stand in place of published figures.
    definition: a digest of what defines the experiments; results of another one are not taken for this table's.
    """

    title: str
    reference: str
    notes: tuple[str, ...]
    columns: Mapping[str, Column]
    published: Mapping[str, Mapping[str, Figure | None]]  # by method, then column; None is measured beside them
    define: Callable[[str, Scenario], Experiment | None]
    deviations: Callable[[str, Scenario], tuple[str, ...]]
    weight: Mapping[str, float]
    unit: float = 1.0
    seeds: int = 1
    peer: str = ""
    definition: str = ""


class Cell(NamedTuple):
    """One figure of the table beside its measurement; NaN where there is none."""

    published: Figure | None
    measured: float
    sem: float
    n: int
    difference: float
    z: float
    near: bool | None  # |difference| ≤ max(2 combined SEM, 1.5 points); None where it cannot be said
    deviations: tuple[str, ...]
    values: dict[int, float]  # by seed


def sem(values: Float[np.ndarray, "n"]) -> float:
    """√(σ²/(n − 1)), σ² the population variance; NaN below two values."""
    values = np.asarray(values, np.float64)
    return math.sqrt(values.var() / (values.size - 1)) if values.size > 1 else math.nan


def compared(
    published: Figure | None,
    by_seed: Mapping[int, float],
    deviations: tuple[str, ...] = (),
    unit: float = 1.0,
    seeds: int = 1,
) -> Cell:
    """One cell, from the values of its seeds, in figures of this unit; `seeds` as in `Table`."""
    held = {seed: float(by_seed[seed]) for seed in sorted(by_seed)}
    values = np.array(list(held.values()), np.float64)
    mean = float(values.mean()) if values.size else math.nan
    own = sem(values)
    if published is None:
        return Cell(None, mean, own, values.size, math.nan, math.nan, None, deviations, held)
    difference = mean - published.mean
    theirs = own * math.sqrt(values.size / seeds) if published.sem is None else published.sem
    both = math.hypot(own, theirs)
    z = difference / both if both > 0 else math.nan
    near = None if math.isnan(own) or math.isnan(difference) else abs(difference) <= max(NEAR * unit, 2 * both)
    return Cell(published, mean, own, values.size, difference, z, near, deviations, held)


def paired(theirs: Mapping[int, float], ours: Mapping[int, float], deviations: tuple[str, ...] = ()) -> Cell:
    """One cell beside another table's, both by seed: the mean of the differences seed by seed, and how many of its own
    standard errors that is.  No verdict: the two are not meant to be near."""
    both = sorted(theirs.keys() & ours.keys())
    if not both:
        return compared(None, ours, deviations)
    other = np.array([theirs[seed] for seed in both], np.float64)
    gained = np.array([ours[seed] for seed in both], np.float64) - other
    figure = Figure(float(other.mean()), _null(sem(other)), "own")
    mean, error = float(gained.mean()), sem(gained)
    z = mean / error if error > 0 else math.nan
    return compared(None, ours, deviations)._replace(published=figure, difference=mean, z=z)


def text_table(table: Table, cells: Mapping[tuple[str, str], Cell]) -> str:
    """The comparison as plain text, one line a cell, with what its reader must know below."""
    digits = 2 if table.unit == 1 else 3
    lines = [table.title, table.reference, ""]
    lines.append(f"{'method':12} {'column':8} {'published':>20} {'measured':>16} {'n':>3} {'diff':>7} {'SEMs':>6}")
    for (method, column), cell in cells.items():
        lines.append(
            f"{method:12} {column:8} {_published(cell.published, digits):>20} "
            f"{_pm(cell.measured, cell.sem, digits):>16} {cell.n:>3} "
            f"{_number(cell.difference, f'+.{digits}f'):>7} {_number(cell.z, '+.1f'):>6} {_verdict(cell)}".rstrip()
        )
    lines += ["", *(f"- {note}" for note in (*table.notes, *_marks(cells), *_bare(table, cells), *_deviations(cells)))]
    return "\n".join(lines)


def as_data(table: Table, cells: Mapping[tuple[str, str], Cell], made: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain data, to be committed; what is not there is null."""
    return {
        "title": table.title,
        "reference": table.reference,
        "notes": list(table.notes),
        "made": dict(made),
        "cells": [
            {
                "method": method,
                "column": column,
                "published": None if cell.published is None else cell.published._asdict(),
                "measured": _null(cell.measured),
                "sem": _null(cell.sem),
                "n": cell.n,
                "values": {str(seed): value for seed, value in cell.values.items()},
                "difference": _null(cell.difference),
                "sems": _null(cell.z),
                "near": cell.near,
                "deviations": list(cell.deviations),
            }
            for (method, column), cell in cells.items()
        ],
    }


def from_data(cell: Mapping[str, Any]) -> Cell:
    """A cell as `as_data` wrote it."""
    published = None if cell["published"] is None else Figure(**cell["published"])
    measured, error, difference, z = (
        math.nan if cell[name] is None else cell[name] for name in ("measured", "sem", "difference", "sems")
    )
    values = {int(seed): value for seed, value in cell["values"].items()}
    return Cell(published, measured, error, cell["n"], difference, z, cell["near"], tuple(cell["deviations"]), values)


def _verdict(cell: Cell) -> str:
    words = {None: "", True: "near", False: "APART"}[cell.near]
    return f"{words}{' *' if cell.deviations else ''}"


def _published(figure: Figure | None, digits: int) -> str:
    if figure is None:
        return "-"
    return f"{_pm(figure.mean, math.nan if figure.sem is None else figure.sem, digits)} [{figure.mark}]"


def _pm(mean: float, error: float, digits: int) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _marks(cells: Mapping[tuple[str, str], Cell]) -> list[str]:
    doubtful = any(cell.published and cell.published.mark in UNVERIFIED for cell in cells.values())
    return ["[rec] and [fig] are unverified figures: look at them, do not rely on them."] if doubtful else []


def _bare(table: Table, cells: Mapping[tuple[str, str], Cell]) -> list[str]:
    figures = [cell.published for cell in cells.values() if cell.published and cell.published.mark != "own"]
    bare = any(figure.sem is None for figure in figures)
    those = "The published seed is" if table.seeds == 1 else f"The {table.seeds} published seeds are"
    return [f"{those} taken to scatter as ours do, where no standard error was published."] if bare else []


def _deviations(cells: Mapping[tuple[str, str], Cell]) -> list[str]:
    """What is not to the letter, with the cells that it concerns."""
    found: dict[str, list[str]] = {}
    for (method, column), cell in cells.items():
        for sentence in cell.deviations:
            found.setdefault(sentence, []).append(f"{method}/{column}")
    return [f"* {', '.join(names)}: {sentence}" for sentence, names in found.items()]


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
