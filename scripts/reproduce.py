"""Reproduce a published table: run its protocol to the letter, and print published against measured.

python scripts/reproduce.py --list                                        all tables
python scripts/reproduce.py vandeven2022/split_mnist --seeds 5            run what is missing, and compare
python scripts/reproduce.py vandeven2022/split_mnist --methods None ER    some rows only
python scripts/reproduce.py vandeven2022/split_mnist --seeds 0            compare what is there, run nothing
python scripts/reproduce.py vandeven2022/split_mnist --seeds 10 --new     add seeds to those that are committed

It says beforehand how long it will take.  Stopped at any time (Ctrl-C), it goes on where it was by the same command.
"""

import dataclasses
import difflib
import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import numpy as np
import tyro
from published_runs import Job, Wanted, definition, found, identity, run_missing
from rich.console import Console
from run import Devices, guarded, leave

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the protocols lie beside this folder

from bptoolkit import runs
from bptoolkit.continual.lanes import SEEDS_MOST
from bptoolkit.continual.streams import Scenario
from bptoolkit.runs.devices import prepare
from bptoolkit.runs.environment import environment, provenance
from bptoolkit.runs.fields import Amount, Range, Whole, check_fields
from bptoolkit.runs.published import Cell, Table, as_data, compared, from_data, paired, text_table
from bptoolkit.runs.record import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "experiments" / "published"
RESULTS = ROOT / "experiments" / "results"  # comparisons that are committed
Place: TypeAlias = tuple[str, str]  # of a cell: its method and its column


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    table: Annotated[str, tyro.conf.Positional]  # as --list names it
    seeds: Annotated[int, Range(0, SEEDS_MOST)] = 5  # nets per cell, numbered from 0; 0 runs nothing
    methods: tuple[str, ...] = ()  # rows; all that can be run if left out
    columns: tuple[str, ...] = ()  # all if left out
    key: Whole = 0  # of all randomness
    runs: Path = Path("runs/published")  # where each seed's result is kept
    out: Path | None = RESULTS  # where the comparison goes
    devices: Devices | None = None  # CPU devices; one per core if left out
    limit: Amount | None = None  # minutes after which no further seeds are begun
    again: bool = False  # start anew the seeds that were broken off; those that have ended stay
    new: bool = False  # leave out the seeds that the comparison in --out has: to add to those of another machine


def main(arguments: list[str]) -> int:
    return guarded(command, arguments)


def command(arguments: list[str]) -> int:
    known = tables()
    if not arguments or arguments[0] in ("-h", "--list"):
        width = max(map(len, known))
        print("\n".join(f"{name:{width}}  {load(name, known).title}" for name in known))
        return 0
    options = tyro.cli(Options, description=__doc__, args=arguments)
    table = load(options.table, known)
    check(options, table)
    prepare(jax.config, options.devices)
    run_missing(wanted(table, options))
    report(table, options, folder_of(options.table, options.runs))
    return 0


def wanted(table: Table, options: Options) -> Wanted:
    """What the command asks for."""
    console = Console()
    return Wanted(
        table,
        options.seeds,
        options.methods or tuple(table.published),
        options.columns or tuple(table.columns),
        options.key,
        folder_of(options.table, options.runs),
        options.limit,
        options.again,
        held=seeds_of_file(table, options) if options.new else {},
        watcher=lambda: runs.display(console, quiet=not console.is_terminal),
    )


def tables() -> tuple[str, ...]:
    """Every file of experiments/published/, as "paper/table"."""
    return tuple(sorted(str(path.relative_to(TABLES).with_suffix("")) for path in TABLES.glob("*/*.py")))


def load(name: str, known: tuple[str, ...]) -> Table:
    """The TABLE of a file, with the definition that its results belong to."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)
        raise ValueError(f"There is no table {name!r}. Nearest: {', '.join(near)}. See --list.")
    module = f"experiments.published.{name.replace('/', '.')}"
    return importlib.import_module(module).TABLE._replace(definition=definition(module))


def check(options: Options, table: Table) -> None:
    """Raise where a row, a column or a number of seeds makes no sense."""
    for kind, asked, known in (("row", options.methods, table.published), ("column", options.columns, table.columns)):
        if strange := [name for name in asked if name not in known]:
            raise ValueError(f"The table has no {kind} {strange[0]!r}; it has {', '.join(known)}.")
    check_fields(options)
    for name, folder in (("--out", options.out), ("--runs", options.runs)):
        if folder is not None and (bad := next((p for p in (folder, *folder.parents) if p.is_file()), None)):
            raise ValueError(f"{name} must be a folder, and {bad} is a file.")
    path, held = file_of(options)
    key = held.get("made", {}).get("key", options.key)
    if key != options.key:
        raise ValueError(f"{path} holds results of --key {key}, got {options.key}. Name another folder: --out.")


def report(table: Table, options: Options, folder: Path) -> None:
    """Print the comparison of what was asked for, and leave that of the whole table as data.

    Cells of which the file has all seeds that are here and more stay there as they were, so that some rows can be run
    without the others, and a few seeds do not take the place of many; of those without a seed here, they are printed.
    Seeds that the file lacks join those that it has.
    """
    cells = {place: cell_of(table, *place, options.key, folder) for place in places(table)}
    path, former = file_of(options)
    held = former_cells(former, table)
    beside = lambda place, values, deviations: figure(table, place, values, deviations, options.key, folder.parent)
    held = {place: beside(place, cell.values, cell.deviations) for place, cell in held.items()}  # the peer as it is now
    joined = {}
    for place, there in held.items():
        here = cells[place]
        lost = set(here.deviations) - set(table.deviations(*scenario_of(table, place)))
        kept = sorted(there.values.keys() - here.values.keys())
        if kept and (lost or here.values.keys() - there.values.keys()):
            joined[place] = kept
            told = tuple(dict.fromkeys(there.deviations + here.deviations))
            cells[place] = beside(place, there.values | here.values, told)
    methods, columns = options.methods or table.published, options.columns or table.columns
    asked = [place for place in cells if place[0] in methods and place[1] in columns]
    standing = [place for place in asked if not cells[place].n and place in held]
    shown = {place: held[place] if place in standing else cells[place] for place in asked}
    text = text_table(table, shown)
    if standing:
        text += f"\n- no seed is here of {', '.join(map('/'.join, standing))}: as in {path}"
    if path is None or not any(cells[place].n for place in asked):
        print(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = provenance(environment({})) | {"key": options.key, "sources": sources(folder)}
    stays = {place: held[place] for place in cells if place in held and held[place].n > cells[place].n}
    data = as_data(table, cells | stays, made)
    for cell in data["cells"]:
        cell["protocol"] = protocol(table, cell["method"], cell["column"])
    if stays or joined:
        data["former"] = [*former.get("former", ()), former["made"]]
    write_json(path, data)  # before anything is printed, which a closed pipe may end
    for method, column in stays:
        if cells[method, column].n:
            text += f"\n- {method}/{column}: the {stays[method, column].n} seeds of the file stay there"
    for place in asked:
        if place in joined:
            text += f"\n- {'/'.join(place)}: seeds {', '.join(map(str, joined[place]))} are those of the file"
    print(f"{text}\n\n{path}")


def places(table: Table) -> list[Place]:
    """The cells of a table, row by row."""
    return [(method, column) for method, row in table.published.items() for column in table.columns if column in row]


def file_of(options: Options) -> tuple[Path | None, dict[str, Any]]:
    """Where the comparison goes, and what is there already."""
    path = None if options.out is None else options.out / f"{slug(options.table)}.json"
    held = read_json(path) if path is not None and path.is_file() else {}
    if held and not {"title", "cells", "made"} <= held.keys():
        raise ValueError(f"{path} must be a comparison, as this command leaves it, got another JSON. Name --out anew.")
    return path, held


def scenario_of(table: Table, place: Place) -> tuple[str, Scenario]:
    """A cell's method and scenario."""
    method, column = place
    return method, table.columns[column].scenario


def seeds_of_file(table: Table, options: Options) -> dict[tuple[str, str], frozenset[int]]:
    """The seeds that the comparison has of a method in a scenario, in all its columns."""
    held = former_cells(file_of(options)[1], table)
    found: dict[tuple[str, str], frozenset[int]] = {}
    for place in places(table):
        there = frozenset(held[place].values) if place in held else frozenset()
        where = scenario_of(table, place)
        found[where] = found.get(where, there) & there
    return found


def former_cells(former: dict[str, Any], table: Table) -> dict[Place, Cell]:
    """Those of a comparison's cells that have seeds, and are of this table's protocol."""
    if former.get("title") != table.title:
        return {}
    read = {(cell["method"], cell["column"]): cell for cell in former["cells"] if cell["n"]}

    def same(place: Place) -> bool:
        told = set(table.deviations(*scenario_of(table, place))) <= set(read[place]["deviations"])
        return told and read[place].get("protocol") == protocol(table, *place)

    return {place: from_data(read[place]) for place in places(table) if place in read and same(place)}


def protocol(table: Table, method: str, column: str) -> dict[str, Any] | None:
    """The budget of a cell: seeds of another are not taken for its own.  None where there is no such method yet."""
    scenario = table.columns[column].scenario
    if table.define(method, scenario) is None:
        return None
    whole = identity(table, Job(method, scenario, ()), 0)
    return {name: whole[name] for name in ("steps", "batch", "tasks")}


def cell_of(table: Table, method: str, column: str, key: int, folder: Path) -> Cell:
    """One cell from the files of its seeds; seeds that diverged are left out, and said."""
    scenario = table.columns[column].scenario
    deviations = table.deviations(method, scenario)
    if table.define(method, scenario) is None:
        return compared(table.published[method][column], {}, deviations or ("not run: there is no such method yet",))
    values, lost = by_seed(table, method, column, key, folder)
    if lost:
        deviations += (f"seeds that diverged are left out: {lost}",)
    return figure(table, (method, column), values, deviations, key, folder.parent)


def figure(
    table: Table, place: Place, values: dict[int, float], deviations: tuple[str, ...], key: int, runs: Path
) -> Cell:
    """Measured values beside the published figure, or beside those of the table's peer."""
    method, column = place
    if table.peer:
        return paired(of_peer(table.peer, method, column, key, runs), values, deviations)
    return compared(table.published[method][column], values, deviations, table.unit, table.seeds)


def of_peer(name: str, method: str, column: str, key: int, runs: Path) -> dict[int, float]:
    """The figure of every seed of another table: run here, or else as the repository has it committed."""
    table = load(name, tables())
    here, _ = by_seed(table, method, column, key, folder_of(name, runs))
    path = RESULTS / f"{slug(name)}.json"
    held = read_json(path) if path.is_file() else {}
    if held.get("title") != table.title or held["made"]["key"] != key:
        return here
    committed = former_cells(held, table).get((method, column))
    return (committed.values if committed else {}) | here


def by_seed(table: Table, method: str, column: str, key: int, folder: Path) -> tuple[dict[int, float], int]:
    """The figure of every seed that is there, and how many diverged."""
    scenario, score = table.columns[column]
    job = Job(method, scenario, ())
    wanted = identity(table, job, key)
    held = [found(path, wanted) for path in folder.glob(job.path(folder, 0).name.replace("-0.json", "-*.json"))]
    there = [one for one in held if one is not None]
    values = {one["seed"]: float(score(Found.of(one))) for one in there if one["finite"]}
    return values, len(there) - len(values)


def folder_of(name: str, runs: Path) -> Path:
    """Where the results of a table's seeds are kept."""
    return runs / slug(name)


def slug(name: str) -> str:
    """A table's name as that of a file or folder."""
    return name.replace("/", "-")


def sources(folder: Path) -> list[dict[str, Any] | None]:
    """The versions of this repository that made the results of a folder, each once."""
    held = [read_json(path) for path in sorted(folder.glob("*.json"))]
    told = [version for one in held for version in (*one.get("begun", ()), one.get("source"))]
    return [json.loads(one) for one in sorted({json.dumps(version, sort_keys=True) for version in told})]


class Found(NamedTuple):
    """What the metrics read of a result."""

    accuracy: np.ndarray
    untrained: np.ndarray

    @classmethod
    def of(cls, held: dict[str, Any]) -> "Found":
        """From a seed's file."""
        return cls(np.array(held["accuracy"]), np.array(held["untrained"]))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*donated.*")
    leave(main, sys.argv[1:])
