"""What a run found, in numbers with intervals: mean ± t(n − 1, 97.5 %) · s / √n over n seeds.

The summary is plain JSON, small enough to commit; every table is made from it.  What is undefined or was not measured
is null with its reason, never 0.
"""

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bptoolkit.runs.record import RunError, read_json, write_json

if TYPE_CHECKING:
    import xarray

SUMMARY = "summary.json"
LEVEL = 0.95
METRICS = ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer")  # of `continual.metrics`
SETTLING = {"forward": ("settling_steps", "unconverged"), "backward": ("backward_steps", "backward_unconverged")}
PLASTICITY = ("dormant", "effective_rank", "weight_norm")
DIAGNOSIS = ("plain", "masked", "nearest_mean", "linear_probe", "calibration_error", "brier_score")
WITHIN = ("stability_gap", "minimum_accuracy", "worst_case_accuracy")  # likewise, of tests within the tasks
COSTS = ("parameters", "flops", "ms_per_1000", "seconds", "compile_seconds", "peak_bytes", "memory_bytes")
NOT_MEASURED = "not measured"
NO_FEATURES = "no features of one net"


def interval(values: Float[np.ndarray, "n"], level: float = LEVEL) -> tuple[float, float]:
    """Mean and half-width of Student's t-interval, t(n − 1, (1 + level)/2) · s / √n, s² with n − 1.

    Exact for independent normal values; NaN where n is too small (no mean for 0, no half-width for 1).
    """
    from scipy.special import stdtrit

    values = np.asarray(values, np.float64)
    if values.size < 2:
        return (float(values[0]) if values.size else math.nan), math.nan
    half = stdtrit(values.size - 1, (1 + level) / 2) * values.std(ddof=1) / math.sqrt(values.size)
    return float(values.mean()), float(half)


def summarise(results: "xarray.Dataset") -> dict[str, Any]:
    """Each net × strategy × scenario that was run, as one row of plain data.

    A seed counts where its whole matrix accuracy[after ≥ 1, on] is there and its weights stayed finite; a combination
    without such a seed is named under `not_run`, or under `diverged` with how many seeds did.

    Returns:
        {tasks, seeds, level, question, chance: {scenario: share}, rows: […], not_run: [[net, strategy, scenario]],
        diverged: [[net, strategy, scenario, seeds]]}.
        A row holds net, strategy, scenario, the metrics and train_test_gap as {mean, half_width, n, reason},
        settling {forward, backward: {steps, unconverged}} or null for a net that does not settle, plasticity
        {dormant, effective_rank, weight_norm: {first, last}}, after the first and the last task, or null where it was
        not probed, diagnosis {plain, masked, nearest_mean, linear_probe, calibration_error, brier_score}, means over
        tasks after the last one, or null where there is none, within {stability_gap, minimum_accuracy,
        worst_case_accuracy} or null where nothing was tested within the tasks, and the costs.
    """
    names = {axis: [str(name) for name in results[axis].values] for axis in ("scenario", "net", "strategy")}
    rows, not_run, diverged = [], [], []
    for scenario, net, strategy in itertools.product(*names.values()):
        cell = results.sel(net=net, strategy=strategy, scenario=scenario)
        ran, trained_seeds = complete(cell).values, there(cell).values
        if lost := int((trained_seeds & ~ran).sum()):
            diverged.append([net, strategy, scenario, lost])
        if ran.any():
            rows.append({"net": net, "strategy": strategy, "scenario": scenario} | row(cell.isel(seed=ran), ran.size))
        elif not trained_seeds.any():
            not_run.append([net, strategy, scenario])
    return {
        "tasks": results.sizes["on"],
        "seeds": results.sizes["seed"],
        "level": LEVEL,
        "question": results.attrs.get("question"),
        "chance": chance(results),
        "rows": rows,
        "not_run": not_run,
        "diverged": diverged,
    }


def save_summary(folder: Path | str, results: "xarray.Dataset") -> dict[str, Any]:
    """Summarise, write summary.json, and return the summary."""
    summary = summarise(results)
    write_json(Path(folder) / SUMMARY, summary)
    return summary


def load_summary(folder: Path | str) -> dict[str, Any]:
    """The summary of a run folder, from which tables are made.

    Raises:
        RunError: when it is missing or damaged.
    """
    try:
        return read_json(Path(folder) / SUMMARY)
    except RunError as error:
        raise RunError(f"{error} Make it anew of the results: scripts/report.py {folder}.") from error


def row(cell: "xarray.Dataset", seeds: int) -> dict[str, Any]:
    """All numbers of one combination; `cell` holds only the seeds that ran, out of `seeds`."""
    settling = {way: settled(cell, *names, seeds) for way, names in SETTLING.items()}
    settles = any(entry["n"] for way in settling.values() for entry in way.values())
    return {
        **metric_estimates(cell["accuracy"], seeds),
        "train_test_gap": estimate(train_test_gap(cell), seeds),
        "settling": settling if settles else None,
        "plasticity": plasticity(cell, seeds),
        "diagnosis": diagnosis(cell, seeds),
        "within": within(cell, seeds),
        **{name: number(cell[name].item()) if name in cell else None for name in COSTS},
    }


def estimate(values: Float[np.ndarray, "seed"], seeds: int, undefined: str = NOT_MEASURED) -> dict[str, Any]:
    """Mean and half-width over the finite values, how many these are, and the reason for whatever is missing."""
    values = values[np.isfinite(values)]
    mean, half_width = interval(values)
    n = int(values.size)
    return {"mean": number(mean), "half_width": number(half_width), "n": n, "reason": missing(n, seeds, undefined)}


def missing(n: int, seeds: int, undefined: str) -> str | None:
    """Why there is no mean, no interval, or an interval over fewer seeds than the run has."""
    if n == 0:
        return undefined
    counted = None if n == seeds else f"{n} of {seeds} seeds"
    return counted if n > 1 else f"{counted or 'one seed'}: no interval"


def metric_estimates(accuracy: "xarray.DataArray", seeds: int) -> dict[str, Any]:
    """Each metric of R[seed, after 1 … T, on], estimated over the seeds."""
    from bptoolkit.continual import metrics

    R = trained(accuracy).transpose("seed", "after", "on").values.astype(np.float64)
    why = {name: metrics.reason(name, accuracy.sizes["on"]) or NOT_MEASURED for name in METRICS}
    return {name: estimate(getattr(metrics, name)(R), seeds, why[name]) for name in METRICS}


def trained(accuracy: "xarray.DataArray") -> "xarray.DataArray":
    """The accuracies without the untrained row, after = 0."""
    return accuracy.sel(after=slice(1, None))


def there(results: "xarray.Dataset") -> "xarray.DataArray":
    """Which seeds were trained to the end: every accuracy but those of the untrained row is there."""
    return trained(results["accuracy"]).notnull().all(("after", "on"))


def complete(results: "xarray.Dataset") -> "xarray.DataArray":
    """Which seeds count: trained to the end, with weights that were finite after every task.

    A net of NaN answers, and is never right: its accuracy of 0 is no measurement.
    """
    finite = (results["finite"] != 0).all("task") if "finite" in results else True
    return there(results) & finite


def train_test_gap(cell: "xarray.Dataset") -> Float[np.ndarray, "seed"]:
    """Accuracy on training rows minus accuracy on test rows after the last task, mean over tasks."""
    if "train_accuracy" not in cell:
        return np.full(cell.sizes["seed"], np.nan)
    last = cell[["train_accuracy", "accuracy"]].isel(after=-1).astype(np.float64)
    return (last["train_accuracy"] - last["accuracy"]).mean("on", skipna=False).values


def plasticity(cell: "xarray.Dataset", seeds: int) -> dict[str, Any] | None:
    """How much of the net was alive after the first and after the last task; None where it was not probed."""
    if not set(PLASTICITY) <= set(cell.data_vars) or not bool(cell[PLASTICITY[0]].notnull().any()):
        return None
    times = {"first": 1, "last": -1}
    return {
        name: {when: estimate(cell[name].isel(after=after).values, seeds) for when, after in times.items()}
        for name in PLASTICITY
    }


def diagnosis(cell: "xarray.Dataset", seeds: int) -> dict[str, Any] | None:
    """Why the net answered wrongly after the last task, and whether it knew; None where it was not diagnosed."""
    if not set(DIAGNOSIS) <= set(cell.data_vars) or not bool(cell[DIAGNOSIS[0]].notnull().any()):
        return None
    last = cell[list(DIAGNOSIS)].isel(after=-1).astype(np.float64).mean("on", skipna=False)
    return {name: estimate(last[name].values, seeds, NO_FEATURES) for name in DIAGNOSIS}


def within(cell: "xarray.Dataset", seeds: int) -> dict[str, Any] | None:
    """What only tests within the tasks show; None where there were none."""
    from bptoolkit.continual import metrics

    if "within" not in cell or not bool(cell["within"].notnull().any()):
        return None
    ends = cell["end"].values.astype(int)
    tests = cell["within"].transpose("seed", "evaluation", "on").values.astype(np.float64)[:, : ends[-1] + 1]
    why = {name: metrics.reason(name, tests.shape[-1]) or NOT_MEASURED for name in WITHIN}
    return {name: estimate(getattr(metrics, name)(tests, ends), seeds, why[name]) for name in WITHIN}


def settled(cell: "xarray.Dataset", steps: str, unconverged: str, seeds: int) -> dict[str, Any]:
    """Steps per example and share of settlings that did not converge, mean over the tasks of each seed."""

    def of(name: str) -> dict[str, Any]:
        unknown = np.full(cell.sizes["seed"], np.nan)
        return estimate(cell[name].mean("task").values if name in cell else unknown, seeds)

    return {"steps": of(steps), "unconverged": of(unconverged)}


def chance(results: "xarray.Dataset") -> dict[str, float | None]:
    """Accuracy of guessing, per scenario, from the attribute `chance`: one number, or one for each scenario."""
    scenarios = [str(name) for name in results["scenario"].values]
    levels = np.ravel(results.attrs.get("chance", np.nan)).astype(np.float64)
    if levels.size not in (1, len(scenarios)):
        raise ValueError(
            f"The attribute `chance` must be one number or one for each of {scenarios}, got {levels.size} numbers."
        )
    return {name: number(level) for name, level in zip(scenarios, np.resize(levels, len(scenarios)), strict=True)}


def number(value: float) -> float | int | None:
    """A number that JSON can hold: whole ones as int, None for NaN and infinity."""
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value
