"""The runs behind a published table: which of them are missing, how long they will take, and a file for each seed.

`reproduce.py` compares what they give.  Seeds under way lie in unfinished/, saved once a minute: what was broken off
goes on there, bit-identical.
"""

import ast
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bptoolkit import continual as cl
from bptoolkit import runs
from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.streams import Scenario
from bptoolkit.runs.interrupt import interruptible
from bptoolkit.runs.published import Table
from bptoolkit.runs.record import ENVIRONMENT, UNFINISHED, read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION = 30  # updates timed of each task but the first


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which runs of a table, and how."""

    table: Table
    seeds: int  # per cell, numbered from 0
    methods: tuple[str, ...]
    columns: tuple[str, ...]
    key: int
    folder: Path  # of this table alone
    limit: float | None = None  # minutes after which no further seeds are begun
    again: bool = False  # anew what was broken off
    held: Mapping[tuple[str, str], frozenset[int]] = dataclasses.field(default_factory=dict)  # elsewhere, so not run
    watcher: Callable[[], runs.Watcher] | None = None  # sees a group of seeds as it goes on


class Job(NamedTuple):
    """Seeds of one method in one scenario."""

    method: str
    scenario: Scenario
    seeds: tuple[int, ...]

    def path(self, folder: Path, seed: int) -> Path:
        """Where a seed's result is kept."""
        return folder / f"{self.method}-{self.scenario}-{seed}.json"


def run_missing(wanted: Wanted) -> None:
    """Run what is missing, a group of seeds at a time."""
    size = len(jax.devices())
    if other := others(wanted):
        print(f"{other} seeds that are there are of another protocol or definition of the table, and are not taken.")
    jobs = [job for job in missing(wanted) for job in groups(job, size)]
    if not jobs:
        return
    table = wanted.table
    seconds = calibrate(table, jobs[0])
    expected = [seconds * table.weight.get(job.method, 2.0) * len(job.seeds) for job in jobs]
    count, whole = sum(len(job.seeds) for job in jobs), told(sum(expected))
    begun = 0 if wanted.again else sum(place(wanted, job).is_dir() for job in jobs)
    less = f", less what {begun} of their groups have done already" if begun else ""
    print(f"{count} runs, about {whole} on this machine as busy as it is now{less}.", flush=True)
    began, pace = time.perf_counter(), 1.0
    with interruptible() as interruption:
        for i, job in enumerate(jobs):
            interruption.check("What has finished is kept.")
            if wanted.limit is not None and time.perf_counter() - began > 60 * wanted.limit:
                spent, left = told(time.perf_counter() - began), len(jobs) - i
                print(f"Stopped after {spent}; {left} groups of seeds are left. The same command goes on.")
                return
            if not_there(wanted, job).seeds:  # else another process has been here meanwhile
                run_group(wanted, job)
            pace = (time.perf_counter() - began) / sum(expected[: i + 1])
            left = told(pace * sum(expected[i + 1 :]))
            print(f"{job.method}/{job.scenario} seeds {', '.join(map(str, job.seeds))} done; {left} left", flush=True)


def missing(wanted: Wanted) -> Iterator[Job]:
    """What was asked for and is not there, seeds by seeds."""
    table = wanted.table
    scenarios: dict[Scenario, None] = {table.columns[column].scenario: None for column in wanted.columns}
    for method in wanted.methods:
        for scenario in scenarios:
            if table.define(method, scenario) is None:
                continue
            held = wanted.held.get((method, scenario), frozenset())
            asked = tuple(seed for seed in range(wanted.seeds) if seed not in held)
            job = not_there(wanted, Job(method, scenario, asked))
            if job.seeds:
                yield job


def not_there(wanted: Wanted, job: Job) -> Job:
    """The job with those of its seeds of which there is no result."""
    whose = identity(wanted.table, job, wanted.key)
    return job._replace(seeds=tuple(s for s in job.seeds if found(job.path(wanted.folder, s), whose) is None))


def others(wanted: Wanted) -> int:
    """Results that are there of what was asked for, and are not this table's as it stands now."""
    return sum(job.path(wanted.folder, seed).is_file() for job in missing(wanted) for seed in job.seeds)


def groups(job: Job, size: int) -> Iterator[Job]:
    """As many seeds at a time as there are devices."""
    for first in range(0, len(job.seeds), size):
        yield job._replace(seeds=job.seeds[first : first + size])


def run_group(wanted: Wanted, job: Job) -> None:
    """Train, or go on with what was broken off, and keep one file a seed."""
    whose, made = identity(wanted.table, job, wanted.key), experiment(wanted.table, job)
    under_way = place(wanted, job)
    name = f"published/{job.method}/{job.scenario}"
    watcher = wanted.watcher() if wanted.watcher is not None else None
    outcome = runs.carry_out(under_way, config(wanted, job), {name: made}, watcher=watcher, again=wanted.again)
    results = outcome.results.isel(net=0, strategy=0, scenario=0)
    spent = float(results["seconds"] + results["compile_seconds"]) / len(job.seeds)
    sources = sources_of(under_way)
    for seed in job.seeds:
        own = results.sel(seed=seed)
        came_out = {
            "seed": seed,
            "accuracy": own["accuracy"].values[1:].tolist(),
            "untrained": own["accuracy"].values[0].tolist(),
            "finite": bool(own["finite"].values.all()),
            "seconds": round(spent, 1),
            "source": sources[-1],
        }
        begun = {"begun": sources[:-1]} if sources[:-1] else {}
        write_json(job.path(wanted.folder, seed), whose | came_out | begun)
    shutil.rmtree(under_way)


def place(wanted: Wanted, job: Job) -> Path:
    """Where a group of seeds lies while it is under way."""
    return wanted.folder / UNFINISHED / runs.run_name(config(wanted, job))


def config(wanted: Wanted, job: Job) -> dict[str, Any]:
    """What decides the results of a group of seeds."""
    whose = identity(wanted.table, job, wanted.key)
    return {"experiment": f"published.{job.method}-{job.scenario}", "seeds": list(job.seeds)} | whose


def sources_of(folder: Path) -> list[Any]:
    """The versions of this repository that a run folder was made by, in their order."""
    record = read_json(folder / ENVIRONMENT)
    every = [start.get("source") for start in (*(record.get("earlier") or ()), record)]
    return [one for i, one in enumerate(every) if i == len(every) - 1 or one not in every[i + 1 :]]


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
        "definition": table.definition,
    }


def definition(module: str, root: Path = ROOT) -> str:
    """A digest of the code of a table's file, and of those beside it that it imports, without what they say of it.

    A rate, a strength or a size that is changed there changes it; a comment or a docstring does not.
    """
    trees, left = {}, [module]
    while left:
        name = left.pop()
        path = root.joinpath(*name.split(".")).with_suffix(".py")
        if name in trees or not path.is_file():
            continue
        trees[name] = tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments.published"):
                left += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
    code = "\n".join(f"{name} {ast.unparse(tree)}" for name, tree in sorted(trees.items()))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


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


def told(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"
