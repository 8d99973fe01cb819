"""Reproduce a published table: run its protocol to the letter, and print published against measured.

python scripts/reproduce.py --list                                        all tables
python scripts/reproduce.py vandeven2022/split_mnist --seeds 5            run what is missing, and compare
python scripts/reproduce.py vandeven2022/split_mnist --methods None ER    some rows only
python scripts/reproduce.py vandeven2022/split_mnist --seeds 0            compare what is there, run nothing

It says beforehand how long it will take.  It can be stopped at any time: the same command goes on where it was.
"""

import dataclasses
import difflib
import importlib
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the protocols lie beside this folder

from bptoolkit import continual as cl
from bptoolkit import runs
from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.streams import Scenario
from bptoolkit.runs.devices import prepare
from bptoolkit.runs.environment import environment, provenance, source
from bptoolkit.runs.published import Cell, Table, as_data, compared, paired, text_table
from bptoolkit.runs.record import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "experiments" / "published"
CALIBRATION = 30  # updates timed of each task but the first


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    table: Annotated[str, tyro.conf.Positional]  # as --list names it
    seeds: int = 5  # nets per cell, numbered from 0; 0 runs nothing
    methods: tuple[str, ...] = ()  # rows; all that can be run if left out
    columns: tuple[str, ...] = ()  # all if left out
    key: int = 0  # of all randomness
    runs: Path = Path("runs/published")  # where each seed's result is kept
    out: Path | None = ROOT / "experiments" / "results"  # where the comparison goes
    devices: int | None = None  # CPU devices; one per core if left out
    limit: float | None = None  # minutes after which no further seeds are begun


class Job(NamedTuple):
    """Seeds of one method in one scenario."""

    method: str
    scenario: Scenario
    seeds: tuple[int, ...]

    def path(self, folder: Path, seed: int) -> Path:
        """Where a seed's result is kept."""
        return folder / f"{self.method}-{self.scenario}-{seed}.json"


def main(arguments: list[str]) -> int:
    known = tables()
    if not arguments or arguments[0] in ("-h", "--list"):
        print("\n".join(f"{name:28} {load(name, known).title}" for name in known))
        return 0
    try:
        options = tyro.cli(Options, description=__doc__, args=arguments)
        table = load(options.table, known)
        check(options, table)
        prepare(jax.config, options.devices)
        folder = folder_of(options.table, options.runs)
        carry_out(table, options, folder)
        report(table, options, folder)
        return 0
    except (ValueError, FileNotFoundError, runs.RunError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def tables() -> tuple[str, ...]:
    """Every file of experiments/published/, as "paper/table"."""
    return tuple(sorted(str(path.relative_to(TABLES).with_suffix("")) for path in TABLES.glob("*/*.py")))


def load(name: str, known: tuple[str, ...]) -> Table:
    """The TABLE of a file."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)
        raise ValueError(f"There is no table {name!r}. Nearest: {', '.join(near)}. See --list.")
    return importlib.import_module(f"experiments.published.{name.replace('/', '.')}").TABLE


def check(options: Options, table: Table) -> None:
    """Raise where a row, a column or a number of seeds makes no sense."""
    for kind, asked, known in (("row", options.methods, table.published), ("column", options.columns, table.columns)):
        if strange := [name for name in asked if name not in known]:
            raise ValueError(f"The table has no {kind} {strange[0]!r}; it has {', '.join(known)}.")
    if options.seeds < 0:
        raise ValueError(f"--seeds must be at least 0, got {options.seeds}.")


def carry_out(table: Table, options: Options, folder: Path) -> None:
    """Run what is missing, a group of seeds at a time; each seed's result is a file."""
    size = len(jax.devices())
    jobs = [job for job in missing(table, options, folder) for job in groups(job, size)]
    if not jobs:
        return
    seconds = calibrate(table, jobs[0])
    expected = [seconds * table.weight.get(job.method, 2.0) * len(job.seeds) for job in jobs]
    print(
        f"{sum(len(job.seeds) for job in jobs)} runs, about {told(sum(expected))} on this machine as busy as it is now."
    )
    began, pace = time.perf_counter(), 1.0
    for i, job in enumerate(jobs):
        if options.limit is not None and time.perf_counter() - began > 60 * options.limit:
            spent, left = told(time.perf_counter() - began), len(jobs) - i
            print(f"Stopped after {spent}; {left} groups of seeds are left. The same command goes on.")
            return
        run_group(table, job, options.key, folder)
        pace = (time.perf_counter() - began) / sum(expected[: i + 1])
        left = told(pace * sum(expected[i + 1 :]))
        print(f"{job.method}/{job.scenario} seeds {', '.join(map(str, job.seeds))} done; {left} left", flush=True)


def missing(table: Table, options: Options, folder: Path) -> Iterator[Job]:
    """What was asked for and is not there, seeds by seeds."""
    scenarios: dict[Scenario, None] = {table.columns[c].scenario: None for c in options.columns or table.columns}
    for method in options.methods or table.published:
        for scenario in scenarios:
            if table.define(method, scenario) is None:
                continue
            job = Job(method, scenario, ())
            wanted = identity(table, job, options.key)
            left = tuple(s for s in range(options.seeds) if found(job.path(folder, s), wanted) is None)
            if left:
                yield job._replace(seeds=left)


def groups(job: Job, size: int) -> Iterator[Job]:
    """As many seeds at a time as there are devices."""
    for first in range(0, len(job.seeds), size):
        yield job._replace(seeds=job.seeds[first : first + size])


def run_group(table: Table, job: Job, key: int, folder: Path) -> None:
    """Train, and keep one file a seed."""
    began, version = time.perf_counter(), source()
    result = cl.run(experiment(table, job), jax.random.key(key), job.seeds)
    seconds = (time.perf_counter() - began) / len(job.seeds)
    folder.mkdir(parents=True, exist_ok=True)
    whose = identity(table, job, key)
    for place, seed in enumerate(job.seeds):
        came_out = {
            "seed": seed,
            "accuracy": result.accuracy[place].tolist(),
            "untrained": result.untrained[place].tolist(),
            "finite": bool(result.finite[place].all()),
            "seconds": round(seconds, 1),
            "source": version,
        }
        write_json(job.path(folder, seed), whose | came_out)


def identity(table: Table, job: Job, key: int) -> dict[str, Any]:
    """What a result belongs to; one of another budget is not taken for it."""
    made = experiment(table, job)
    return {
        "table": table.title,
        "method": job.method,
        "scenario": job.scenario,
        "key": key,
        "steps": made.steps,
        "batch": made.batch,
        "tasks": made.stream.tasks,
        "deviations": list(table.deviations(job.method, job.scenario)),
    }


def found(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """What the file holds, if it is this very result."""
    if not path.is_file():
        return None
    held = read_json(path)
    return held if {name: held.get(name) for name in wanted} == wanted else None


def experiment(table: Table, job: Job) -> Experiment:
    """Its protocol, which `missing` has made sure is there."""
    made = table.define(job.method, job.scenario)
    assert made is not None
    return made


def calibrate(table: Table, job: Job) -> float:
    """Seconds that plain training of one seed will take, tests included, from a few updates a task of it."""
    plain = next(iter(table.published))
    made = experiment(table, job._replace(method=plain))
    few, stamps = dataclasses.replace(made, steps=CALIBRATION), []
    stamp = lambda moment, state: stamps.append(time.perf_counter())
    cl.run(few, jax.random.key(0), seeds=len(job.seeds), on_progress=stamp, on_task=stamp)
    trained, tested = np.array(stamps[::2]), np.array(stamps[1::2])  # in turn, for every task
    update = float(np.median(trained[1:] - tested[:-1])) / CALIBRATION
    test = float(np.median(tested - trained))
    return (made.stream.tasks * (made.steps * update + test) + test) / len(job.seeds)


def report(table: Table, options: Options, folder: Path) -> None:
    """Print the comparison of what was asked for, and leave that of the whole table as data.

    Cells of which no seed is here stay as they were in the file, so that some rows can be run without the others.
    """
    cells = {
        (method, column): cell_of(table, method, column, options.key, folder)
        for method in table.published
        for column in table.columns
        if column in table.published[method]
    }
    methods, columns = options.methods or table.published, options.columns or table.columns
    shown = {place: cell for place, cell in cells.items() if place[0] in methods and place[1] in columns}
    text = text_table(table, shown)
    if options.out is None or not any(one.n for one in shown.values()):
        print(text)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.table.replace('/', '-')}.json"
    made = provenance(environment({})) | {"key": options.key, "sources": sources(folder)}
    data = beside_former(as_data(table, cells, made), read_json(path) if path.is_file() else {})
    write_json(path, data)  # before anything is printed, which a closed pipe may end
    print(f"{text}\n\n{path}")


def beside_former(data: dict[str, Any], former: dict[str, Any]) -> dict[str, Any]:
    """The comparison with the former cells in place of those without a seed; "former" tells how they were made."""
    if former.get("title") != data["title"]:
        return data
    held = {(cell["method"], cell["column"]): cell for cell in former["cells"] if cell["n"]}

    def kept(cell: dict[str, Any]) -> dict[str, Any]:
        old = held.get((cell["method"], cell["column"]))
        if old is None or cell["n"] or not set(cell["deviations"]) <= set(old["deviations"]):
            return cell
        return old

    cells = [kept(cell) for cell in data["cells"]]
    if cells == data["cells"]:
        return data
    return data | {"cells": cells, "former": [*former.get("former", ()), former["made"]]}


def cell_of(table: Table, method: str, column: str, key: int, folder: Path) -> Cell:
    """One cell from the files of its seeds; seeds that diverged are left out, and said."""
    scenario = table.columns[column].scenario
    published, deviations = table.published[method][column], table.deviations(method, scenario)
    if table.define(method, scenario) is None:
        return compared(published, np.zeros(0), deviations or ("not run: there is no such method yet",))
    values, lost = by_seed(table, method, column, key, folder)
    if lost:
        deviations += (f"seeds that diverged are left out: {lost}",)
    if table.peer:
        peer = load(table.peer, tables())
        theirs, _ = by_seed(peer, method, column, key, folder_of(table.peer, folder.parent))
        return paired(theirs, values, deviations)
    return compared(published, np.array([values[seed] for seed in sorted(values)]), deviations, table.unit, table.seeds)


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
    return runs / name.replace("/", "-")


def sources(folder: Path) -> list[dict[str, Any] | None]:
    """The versions of this repository that made the results of a folder, each once."""
    told = (read_json(path).get("source") for path in sorted(folder.glob("*.json")))
    return [json.loads(one) for one in sorted({json.dumps(version, sort_keys=True) for version in told})]


class Found(NamedTuple):
    """What the metrics read of a result."""

    accuracy: np.ndarray
    untrained: np.ndarray

    @classmethod
    def of(cls, held: dict[str, Any]) -> "Found":
        """From a seed's file."""
        return cls(np.array(held["accuracy"]), np.array(held["untrained"]))


def told(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*donated.*")
    sys.exit(main(sys.argv[1:]))
