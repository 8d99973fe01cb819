"""One net against another inside a run: paired over the seeds, which share streams, first weights' keys and batches.

    d_s = m_net,s − m_base,s        for every scenario, strategy and seed s that both have finished

The p of each difference is exact (`continual.compare`), so that n seeds cannot go below 2/2ⁿ, and with ten seeds no
correction for the error in any of dozens of differences could find one real.  So q controls the rate of false
discoveries: of all differences with q below 5 %, 5 % are expected to be none.

Reference: Benjamini & Hochberg (1995), Journal of the Royal Statistical Society B 57.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bptoolkit.continual.statistics import EXACT_UP_TO, compare
from bptoolkit.runs.paired import by_seed
from bptoolkit.runs.record import RunError
from bptoolkit.runs.summary import number

if TYPE_CHECKING:
    import xarray

__all__ = ["contrasts", "joined"]

MEASURES = ("average_accuracy", "learning_accuracy", "forgetting")


def contrasts(runs: "Sequence[xarray.Dataset]", base: str) -> list[list[dict[str, Any]]]:
    """Every other net against `base`, in each run, scenario and strategy.

    Args:
        runs: results as `load_results` gives them.
        base: a net of each.

    Returns:
        For each run its rows {scenario, strategy, net, base: its mean of each measure, and each measure as
        {difference, half_width, effect, p, q, n, reason}}; what is undefined is null, and q is over all rows of all
        runs, for each measure by itself.

    Raises:
        RunError: a run without that net or any other, or with more than 40 seeds.
    """
    from scipy.stats import false_discovery_control

    found = [_of_run(results, base) for results in runs]
    every = [row for rows in found for row in rows]
    for measure in MEASURES:
        known = [row[measure] for row in every if row[measure]["p"] is not None]
        adjusted = false_discovery_control([float(one["p"]) for one in known]) if known else ()
        for one, q in zip(known, adjusted, strict=True):
            one["q"] = float(q)
    return found


def joined(parts: "Sequence[xarray.Dataset]") -> "xarray.Dataset":
    """Runs that differ in their strategies as one; a strategy that several have is that of the last.

    Raises:
        RunError: other nets, scenarios, seeds or tasks.
    """
    import xarray

    whole, *rest = parts
    for part in rest:
        ours, theirs = (one["strategy"].values.tolist() for one in (whole, part))
        kept = whole.sel(strategy=[name for name in ours if name not in theirs])
        try:
            both = xarray.concat(
                [kept, part],
                "strategy",
                data_vars="minimal",
                coords="minimal",
                compat="override",
                join="exact",
                combine_attrs="override",
            )
        except ValueError as error:
            raise RunError("Runs joined by their strategies must have the same nets, scenarios and seeds.") from error
        whole = both.sel(strategy=list(dict.fromkeys([*ours, *theirs])))
    return whole


def _of_run(results: "xarray.Dataset", base: str) -> list[dict[str, Any]]:
    nets = [str(net) for net in results["net"].values]
    if base not in nets:
        raise RunError(f"A contrast with {base!r} needs that net in every run, got {', '.join(nets)}.")
    if len(nets) < 2:
        raise RunError(f"A contrast needs another net beside {base!r} in every run, got none.")
    if results.sizes["seed"] > EXACT_UP_TO:
        raise RunError(f"An exact test takes at most {EXACT_UP_TO} seeds, got {results.sizes['seed']}.")
    return [
        _row(results, str(scenario), str(strategy), net, base)
        for scenario in results["scenario"].values
        for strategy in results["strategy"].values
        for net in nets
        if net != base
    ]


def _row(results: "xarray.Dataset", scenario: str, strategy: str, net: str, base: str) -> dict[str, Any]:
    one, other = (by_seed(results, (scenario, name, strategy)) for name in (net, base))
    row: dict[str, Any] = {"scenario": scenario, "strategy": strategy, "net": net}
    row["base"] = {m: number(float(np.mean([v[m] for v in other.values()]))) if other else None for m in MEASURES}
    shared = sorted(one.keys() & other.keys())
    return row | {m: _measure([one[s][m] for s in shared], [other[s][m] for s in shared]) for m in MEASURES}


def _measure(one: list[float], other: list[float]) -> dict[str, Any]:
    """The difference of one measure; nothing but the reason where no seed is finished in both, or it is undefined."""
    if not one or not np.isfinite([*one, *other]).all():
        names = ("difference", "half_width", "effect", "p", "q")
        return dict.fromkeys(names) | {"n": 0, "reason": "no seed is finished in both, or it is undefined"}
    found = compare(np.array(one), np.array(other))
    told = {name: number(getattr(found, name)) for name in ("difference", "half_width", "effect", "p")}
    return told | {"q": None, "n": found.n, "reason": found.reason}
