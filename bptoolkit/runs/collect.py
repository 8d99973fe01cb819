"""Results of several experiments as one labelled array: accuracy[net, strategy, scenario, seed, after, on]."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bptoolkit.continual.experiment import Result

if TYPE_CHECKING:
    import xarray

__all__ = ["cell", "collect", "merged", "of_grid"]

CELL = ("net", "strategy", "scenario")
CURVES = {
    "settling_steps": "settling_steps",
    "unconverged": "unconverged",
    "backward_steps": "backward_steps",
    "backward_unconverged": "backward_unconverged",
}
COSTS = ("parameters", "flops", "ms_per_1000", "seconds", "compile_seconds", "peak_bytes", "memory_bytes", "steps")


def collect(results: Mapping[str, Result], question: str, chance: Mapping[str, float]) -> "xarray.Dataset":
    """Label the results; a combination that was not run is NaN.

    Args:
        results: by "net/strategy/scenario"; all of the same seeds and number of tasks.
        question: the experiment's, kept as an attribute.
        chance: accuracy of guessing, for each scenario.

    Raises:
        ValueError: a name of another form.
    """
    return merged({name: cell(result) for name, result in results.items()}, question, chance)


def merged(cells: Mapping[str, "xarray.Dataset"], question: str, chance: Mapping[str, float]) -> "xarray.Dataset":
    """What `collect` returns, of what `cell` makes of each result."""
    import xarray

    labelled = []
    for name, data in cells.items():
        labels = name.split("/")
        if len(labels) != len(CELL):
            raise ValueError(f'An experiment must be named "net/strategy/scenario", got {name!r}.')
        labelled.append(data.expand_dims({axis: [label] for axis, label in zip(CELL, labels, strict=True)}))
    whole = xarray.merge(labelled, join="outer", compat="no_conflicts", combine_attrs="drop_conflicts")
    order = {axis: _in_order(cells, i) for i, axis in enumerate(CELL)}
    whole = whole.reindex(order)
    levels = [float(chance[name]) for name in order["scenario"]]
    return whole.assign_attrs(question=question, chance=levels)


def cell(result: Result) -> "xarray.Dataset":
    """One experiment's result, without its name."""
    import xarray

    tasks = np.arange(1, result.accuracy.shape[-1] + 1)
    table = ("seed", "after", "on")
    with_start = lambda start, rows: np.concatenate([start[:, None], rows], axis=1)
    variables = {
        "accuracy": (table, with_start(result.untrained, result.accuracy)),
        "train_accuracy": (table, with_start(result.untrained_train, result.train_accuracy)),
        "loss": (("seed", "task", "bin"), result.curves.loss),
        "finite": (("seed", "task"), result.finite.astype(np.float32)),
        **{name: (("seed", "task"), getattr(result.curves, field).mean(-1)) for name, field in CURVES.items()},
        **{name: ((), float(getattr(result.cost, name))) for name in COSTS},
    }
    coordinates = {"seed": list(result.seeds), "after": [0, *tasks], "on": tasks, "task": tasks}
    if result.plasticity is not None:
        variables |= {name: (("seed", "after"), values) for name, values in result.plasticity._asdict().items()}
    if result.diagnosis is not None:
        variables |= {name: (table, values) for name, values in result.diagnosis._asdict().items()}
    if result.within is not None:
        variables |= {"within": (("seed", "evaluation", "on"), result.within), "end": (("task",), list(result.ends))}
        coordinates["evaluation"] = np.arange(result.within.shape[1])
    return xarray.Dataset(variables, coordinates, attrs={"layout": result.cost.layout})


def of_grid(
    results: Mapping[tuple[Any, ...], Result], own: Mapping[str, Sequence[Any]], whole: Mapping[str, Sequence[Any]]
) -> "xarray.Dataset":
    """What `run_grid` returns as one, with an axis for each number of the grid.

    Args:
        results: by point.
        own: the grid that was run.
        whole: that and more: numbers that make no difference, along which the results are repeated.
    """
    import xarray

    points = [
        cell(result).expand_dims({name: [value] for name, value in zip(own, point, strict=True)})
        for point, result in results.items()
    ]
    together = xarray.merge([xarray.combine_by_coords(points, combine_attrs="override")]) if own else points[0]
    for name in whole.keys() - own.keys():
        together = together.expand_dims({name: list(whole[name])})
    return together.reindex({name: list(values) for name, values in whole.items()}) if whole else together


def _in_order(names: Iterable[str], axis: int) -> list[str]:
    """The labels of one axis, in the order in which they first come."""
    return list(dict.fromkeys(name.split("/")[axis] for name in names))
