"""Several runs side by side: paired differences over the seeds that they share, mean ± t-interval.

d[s] = m_B[s] − m_A[s] for a metric m and every seed s that both runs finished, with weights that stayed finite.  A
seed's stream, initial weights and batches are drawn from the key and its number: with one key and experiment, a pair
shares what chance decided, and d varies less than either run.  Where the keys, or the tasks, differ there are no pairs,
and no difference is given.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bptoolkit.continual import metrics
from bptoolkit.runs.flat import flat
from bptoolkit.runs.record import RunError
from bptoolkit.runs.report import recorded
from bptoolkit.runs.summary import METRICS, complete, interval, number, summarise, there, trained

if TYPE_CHECKING:
    import xarray

__all__ = ["Side", "compare", "load_sides", "settings_that_differ"]

STREAM = ("dataset", "classes_per_task", "tasks", "limit")  # fields of a configuration that decide what is learned
Row = dict[str, Any]
Where = tuple[str, str, str]  # scenario, net, strategy


class Side(NamedTuple):
    """One of the runs."""

    letter: str
    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    results: "xarray.Dataset"
    summary: dict[str, Any]


def load_sides(folders: Sequence[Path | str]) -> list[Side]:
    """The runs in these folders, which are only read, named A, B, C, …

    Raises:
        RunError: fewer than two, more than 26, one twice, or one that is no run folder.
    """
    paths = [Path(folder) for folder in folders]
    if not 2 <= len(paths) <= 26 or len({path.resolve() for path in paths}) < len(paths):
        raise RunError(f"A comparison needs 2 to 26 different run folders, got {', '.join(map(str, paths)) or 'none'}.")
    sides = []
    for letter, path in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", paths, strict=False):
        config, environment, results = recorded(path)
        sides.append(Side(letter, path, config, environment, results, summarise(results)))
    return sides


def compare(sides: Sequence[Side]) -> dict[str, Any]:
    """Every other run against the first.

    Returns:
        {rows, alone}: a row for each combination and pair of runs, {scenario, net, strategy, runs: "B − A", pairs} and
        each metric as {mean, half_width, n, reason}; `alone` names what only one side of a pair has, or none as it
        diverged.
    """
    first, *others = sides
    rows = [
        {"scenario": where[0], "net": where[1], "strategy": where[2], "runs": f"{other.letter} − {first.letter}"}
        | difference(first, other, where)
        for other in others
        for where in places(first)
        if where in places(other)
    ]
    alone = [
        f"{side.letter}, not {against.letter}: {named(where)}"
        + (f" (diverged in {against.letter})" if lost(against, where) else "")
        for other in others
        for side, against in itertools.permutations((first, other))
        for where in places(side)
        if where not in places(against)
    ]
    return {"rows": rows, "alone": alone + [line for other in others for line in in_neither(first, other)]}


def places(side: Side) -> list[Where]:
    """What the run has finished, at least in one seed."""
    return [(row["scenario"], row["net"], row["strategy"]) for row in side.summary["rows"]]


def in_neither(first: Side, other: Side) -> list[str]:
    """What has diverged in every seed of one run or of both, and has no seed that counts in either."""
    both = (first, other)
    every = dict.fromkeys((scenario, *names) for side in both for *names, scenario, _ in side.summary["diverged"])
    nowhere = [where for where in every if all(where not in places(side) for side in both)]
    told = lambda where: " and ".join(side.letter for side in both if lost(side, where))
    return [f"neither {first.letter} nor {other.letter}: {named(w)} (diverged in {told(w)})" for w in nowhere]


def lost(side: Side, where: Where) -> bool:
    """Whether seeds of this combination diverged in the run."""
    return any((scenario, *names) == where for *names, scenario, _ in side.summary["diverged"])


def named(where: Where) -> str:
    """Net, strategy and scenario as an experiment is named."""
    return f"{where[1]}/{where[2]}/{where[0]}"


def difference(first: Side, other: Side, where: Where) -> Row:
    """Mean and interval of other − first over the pairs, of each metric."""
    apart = not_the_same_draws(first, other)
    one, two = (by_seed(side.results, where) for side in (first, other))
    shared = [] if apart else sorted(one.keys() & two.keys())
    possible = max(first.results.sizes["seed"], other.results.sizes["seed"])
    bad = len(
        set.union(*(diverged(side.results, where) for side in (first, other))) & seeds_of(first) & seeds_of(other)
    )
    undefined = apart or missing(0, possible, bad)
    found = {}
    for name in METRICS:
        values = np.array([two[seed][name] - one[seed][name] for seed in shared])
        values = values[np.isfinite(values)]
        tasks = min(side.summary["tasks"] for side in (first, other))
        why = metrics.reason(name, tasks) if shared else undefined
        found[name] = paired(values, possible, bad, why or undefined)
    return {"pairs": len(shared), "possible": possible} | found


def paired(values: np.ndarray, possible: int, diverged: int, undefined: str | None) -> Row:
    """An estimate of the form of a summary's; its reason says which pairs are missing."""
    mean, half_width = interval(values)
    n = int(values.size)
    few = missing(n, possible, diverged)
    reason = undefined if n == 0 else few if n > 1 else f"{few or 'one pair'}: no interval"
    return {"mean": number(mean), "half_width": number(half_width), "n": n, "reason": reason}


def missing(n: int, possible: int, diverged: int) -> str | None:
    """Why there are fewer pairs than seeds."""
    if n == possible:
        return None
    if not diverged:
        return f"{n} of {possible} seeds are finished in both runs" if n else "no seed is finished in both runs"
    unfinished = possible - n - diverged
    rest = f", {unfinished} not finished in both" if unfinished > 0 else ""
    return f"{n or 'none'} of {possible} seeds count in both runs, {diverged} diverged{rest}"


def seeds_of(side: Side) -> set[int]:
    """The numbers of the run's seeds."""
    return {int(seed) for seed in side.results["seed"].values}


def diverged(results: "xarray.Dataset", where: Where) -> set[int]:
    """The seeds that were trained to the end and whose weights did not stay finite."""
    scenario, net, strategy = where
    cell = results.sel(scenario=scenario, net=net, strategy=strategy)
    return {int(seed) for seed in cell["seed"].values[(there(cell) & ~complete(cell)).values]}


def not_the_same_draws(first: Side, other: Side) -> str | None:
    """Why seeds of the same number are no pair; None where they are one."""
    for name in ("experiment", "key"):
        one, two = (side.config.get(name) for side in (first, other))
        if one != two:
            return f"no pairs: {name} {one} in {first.letter}, {two} in {other.letter}"
    fields = [side.config.get("config") or {} for side in (first, other)]
    for name in STREAM:
        one, two = (side.get(name) for side in fields)
        if one != two:
            return f"no pairs: {name.replace('_', ' ')} {one} in {first.letter}, {two} in {other.letter}"
    return None


def by_seed(results: "xarray.Dataset", where: Where) -> dict[int, dict[str, float]]:
    """Each metric of every seed that was trained to the end and did not diverge."""
    scenario, net, strategy = where
    cell = results.sel(scenario=scenario, net=net, strategy=strategy)
    accuracy = cell["accuracy"].isel(seed=complete(cell).values)
    R = trained(accuracy).transpose("seed", "after", "on").values.astype(np.float64)
    values = {name: getattr(metrics, name)(R) for name in METRICS}
    seeds = [int(seed) for seed in accuracy["seed"].values]
    return {seed: {name: float(values[name][i]) for name in METRICS} for i, seed in enumerate(seeds)}


def settings_that_differ(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    """Fields of the configurations that are not the same in all runs; a dash where a run has none."""
    configs = [dict(flat(side.config)) for side in sides]
    fields = dict.fromkeys(itertools.chain.from_iterable(configs))
    told = [(field, [config.get(field, "–") for config in configs]) for field in fields]
    return [(field, values) for field, values in told if len(set(values)) > 1]
