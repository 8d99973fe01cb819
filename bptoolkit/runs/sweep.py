"""A grid over any fields of an experiment's configuration, as one labelled array.

    accuracy[swept fields …, net, strategy, scenario, seed, after, on]

A field that the experiments hold in their `hyper` is traced: its values lie side by side in one compiled program.  Any
other field is static: each combination of static values is a run folder of its own under cells/, carried out in turn,
found again when it has finished, and taken up when it was broken off.  A cell that fails is recorded, and NaN.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bptoolkit.continual.experiment import Experiment
from bptoolkit.runs.fields import check_fields
from bptoolkit.runs.interrupt import interruptible
from bptoolkit.runs.lock import InUse, locked
from bptoolkit.runs.processes import is_leader
from bptoolkit.runs.record import AXES, RunError, first_line, load_dataset, remove, run_name, save_dataset, write_json
from bptoolkit.runs.summary import complete, interval

if TYPE_CHECKING:
    import xarray

__all__ = ["Cell", "Plan", "Point", "Swept", "best", "load_sweep", "plan", "points", "sweep", "undecided"]

SWEEP, STATES = "sweep.nc", "sweep.json"
CHOICE = "chosen.json"
Define = Callable[[Any], Mapping[str, Experiment]]


class Cell(NamedTuple):
    """One combination of static values."""

    values: Mapping[str, Any]
    config: Any


class Plan(NamedTuple):
    """What is run one after the other, and what at once."""

    over: Mapping[str, Sequence[Any]]
    traced: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def grid(self) -> dict[str, Sequence[Any]]:
        """The traced fields and their values."""
        return {name: self.over[name] for name in self.traced}


class Swept(NamedTuple):
    """A sweep's results, and which of its static cells failed, with the sentence."""

    results: "xarray.Dataset"
    failed: Mapping[str, str]


def plan(define: Define, config: Any, over: Mapping[str, Sequence[Any]]) -> Plan:
    """Tell what is traced from what is static.

    Args:
        define: makes the experiments of a configuration.
        config: a dataclass; the fields that are not swept keep its values.
        over: names of fields, and the values of each.

    Raises:
        ValueError: no field, no field of that name, one that is an axis of every result already, a value twice; a
            traced value out of its field's range; different numbers of tasks.
    """
    known = [field.name for field in fields(config)]
    if not over:
        raise ValueError(f"A sweep needs at least one field to go over: {', '.join(known)}.")
    for name, values in over.items():
        if name not in known:
            raise ValueError(f"The experiment has no field {name!r}. Its fields: {', '.join(known)}.")
        if name in AXES:
            raise ValueError(f"{name} is an axis of every result: give all its values at once, --{name} A B …")
        if len({label(value) for value in values}) < len(values) or not values:
            raise ValueError(f"A sweep needs different values of {name}, at least one, got {list(values)}.")
    hypers = [experiment.hyper for experiment in define(config).values()]
    held = lambda name, hyper: name in hyper and hyper[name] == getattr(config, name)
    traced = tuple(name for name in over if all(held(name, hyper) for hyper in hypers))
    for name in traced:
        for value in over[name]:
            check_fields(replace(config, **{name: value}))
    static = [name for name in over if name not in traced]
    chosen = [dict(zip(static, values, strict=True)) for values in itertools.product(*(over[name] for name in static))]
    cells = tuple(Cell(values, replace(config, **values)) for values in chosen)
    _check_tasks(define, cells)
    return Plan(over, traced, cells)


def _check_tasks(define: Define, cells: Sequence[Cell]) -> None:
    """Raise where cells differ in their number of tasks; one that cannot be defined fails in its turn."""
    counts = set()
    for cell in cells:
        try:
            counts |= {experiment.stream.tasks for experiment in define(cell.config).values()}
        except (ValueError, RunError):
            continue
    if len(counts) > 1:
        raise ValueError(
            f"All cells of a sweep need the same number of tasks, got {' and '.join(map(str, sorted(counts)))}: their "
            "averages cannot be compared. Sweep over that field in runs of their own."
        )


def sweep(
    folder: Path,
    asked: Plan,
    carry: Callable[[Path, Mapping[str, Any], Cell], "xarray.Dataset"],
    record: Mapping[str, Any],
    fatal: Callable[[Exception], bool] = lambda error: False,
) -> Swept:
    """Carry out all cells, in turn, and save what comes out as sweep.nc.

    Args:
        folder: of the sweep; one for each question.
        asked: what `plan` says.
        carry: carries out one cell in a folder: (folder, its configuration, the cell) → results with the traced axes.
        record: what decides the results beside the configuration: "experiment", "seeds", "key".
        fatal: whether an error ends the whole sweep; it is raised.  Any other is its cell's.

    Raises:
        RunError: when every cell has failed, or the folder cannot be written.
        InUse: when another process holds the folder, or a cell.
        Interrupted: on Ctrl-C or SIGTERM, also where it came when a cell had nothing left to stop.
    """
    found, states = [], []
    with alone(folder), interruptible() as interruption:
        for cell in asked.cells:
            interruption.check("Cells that have finished are kept.")
            config = {**record, "config": asdict(cell.config), "over": {n: list(v) for n, v in asked.grid.items()}}
            place = folder / "cells" / run_name(config)
            state = {"cell": dict(cell.values), "folder": place.relative_to(folder).as_posix()}
            try:
                found.append(labelled(carry(place, config, cell), cell.values))
                states.append(state | {"state": "finished", "error": None})
            except Exception as error:
                if fatal(error) or isinstance(error, InUse):
                    raise
                states.append(state | {"state": "failed", "error": first_line(error)})
            if is_leader():
                over = {name: list(map(label, values)) for name, values in asked.over.items()}
                write_json(folder / STATES, {"over": over, "cells": states})
        failed = {named(state["cell"]): state["error"] for state in states if state["error"]}
        if not found:
            raise RunError(f"Every cell of the sweep failed, the first with: {next(iter(failed.values()))}")
        results = whole(found, asked.over).assign_attrs(over=list(asked.over), failed=list(failed.values()))
        if is_leader():
            save_dataset(folder / SWEEP, results)
    return Swept(results, failed)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder, without array and choice of cells that an earlier start had; process 0 does."""
    if not is_leader():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"The sweep folder {folder} cannot be made ({error.strerror}). Name another in --runs."
        ) from error
    with locked(folder):
        for name in (SWEEP, CHOICE):
            remove(folder / name)
        yield


def load_sweep(folder: Path | str) -> "xarray.Dataset":
    """The results of a sweep, by all its axes.

    Raises:
        RunError: when there are none, or they are damaged.
    """
    path = Path(folder) / SWEEP
    if not path.is_file():
        raise RunError(f"{path} is missing: the folder holds no sweep (yet). Run it, or name its folder.")
    return load_dataset(path)


def labelled(results: "xarray.Dataset", values: Mapping[str, Any]) -> "xarray.Dataset":
    """With one more axis for each static value; bins of curves by number, as cells may have fewer."""
    numbered = results.assign_coords(bin=np.arange(results.sizes["bin"]))
    return numbered.expand_dims({name: [label(value)] for name, value in values.items()})


def whole(cells: Sequence["xarray.Dataset"], over: Mapping[str, Sequence[Any]]) -> "xarray.Dataset":
    """All cells as one, on the full grid in the order asked for; NaN where a cell is missing."""
    import xarray

    together = xarray.merge(cells, join="outer", compat="no_conflicts", combine_attrs="drop_conflicts")
    axes = {name: [label(value) for value in values] for name, values in over.items()}
    names = {axis: list(dict.fromkeys(str(name) for cell in cells for name in cell[axis].values)) for axis in AXES[:3]}
    together = together.reindex(axes | names)
    return together.assign(accuracy=together["accuracy"].transpose(*over, *AXES))


def label(value: Any) -> Any:
    """A value as a coordinate: a number, or text."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def named(values: Mapping[str, Any]) -> str:
    """`units = 20, hidden = (50,)`."""
    return ", ".join(f"{name} = {value}" for name, value in values.items()) or "the grid"


class Point(NamedTuple):
    """One combination at one point of a sweep; the mean is NaN where a seed diverged or the cell failed."""

    net: str
    strategy: str
    scenario: str
    values: Mapping[str, Any]
    mean: float
    half_width: float


def points(results: "xarray.Dataset") -> Iterator[Point]:
    """The average accuracy of every net × strategy × scenario that was run, at every point."""
    over = [str(name) for name in np.atleast_1d(results.attrs["over"])]
    accuracy = results["accuracy"].where(complete(results)).isel(after=-1).mean("on", skipna=False)
    ran = results["accuracy"].isel(after=-1).notnull().any([*over, "seed", "on"])
    for net, strategy, scenario in itertools.product(*(results[axis].values for axis in AXES[:3])):
        one = {"net": net, "strategy": strategy, "scenario": scenario}
        if not ran.sel(one):
            continue
        seeds = accuracy.sel(one).transpose(*over, "seed").values
        for place in np.ndindex(seeds.shape[:-1]):
            values = {name: np.asarray(results[name].values[i]).item() for name, i in zip(over, place, strict=True)}
            yield Point(str(net), str(strategy), str(scenario), values, *interval(seeds[place]))


def best(results: "xarray.Dataset") -> Iterator[Point]:
    """The best point of every net × strategy × scenario that was run; one at which a seed diverged is none.

    The accuracy is that of the test rows, and so is the choice: the figure of the chosen point is too good, the more
    so the more points there are.  Take the point, and run it with other seeds.
    """
    for _, group in itertools.groupby(points(results), key=lambda point: point[:3]):
        whole = [point for point in group if not np.isnan(point.mean)]
        if whole:
            yield max(whole, key=lambda point: point.mean)


def undecided(results: "xarray.Dataset") -> list[str]:
    """Each net/strategy/scenario that was run and has no best point, as a seed diverged at every one."""
    every = dict.fromkeys("/".join(point[:3]) for point in points(results))
    decided = {"/".join(point[:3]) for point in best(results)}
    return [name for name in every if name not in decided]
