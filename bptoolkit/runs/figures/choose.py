"""What of a summary and its results a figure shows."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray

Summary = dict[str, Any]
Combination = tuple[str, str]  # net, strategy


def scenario_of(summary: Summary, scenario: str) -> Summary:
    """The summary of one scenario alone: its rows and its level of chance."""
    rows = [row for row in summary["rows"] if row["scenario"] == scenario]
    return summary | {"scenario": scenario, "rows": rows, "chance": summary["chance"][scenario]}


def names(summary: Summary, axis: str) -> list[str]:
    """The nets, or the strategies, that were run, in the order of the results."""
    return list(dict.fromkeys(row[axis] for row in summary["rows"]))


def settling_nets(summary: Summary) -> list[str]:
    """The nets that settle."""
    return list(dict.fromkeys(row["net"] for row in summary["rows"] if row["settling"] is not None))


def combinations(summary: Summary) -> list[Combination]:
    """Every net with every strategy, also where a pair was not run."""
    return [(net, strategy) for net in names(summary, "net") for strategy in names(summary, "strategy")]


def columns_of(summary: Summary, narrow: bool) -> int:
    """How many combinations stand side by side: two on a phone, else a row for each net where there is room."""
    strategies = len(names(summary, "strategy"))
    return 2 if narrow else strategies if 3 <= strategies <= 5 else 4


def label(combination: Combination) -> str:
    """static · ewc."""
    return " · ".join(combination)


def values_of(results: "xarray.Dataset", name: str, combination: Combination, summary: Summary) -> "xarray.DataArray":
    """One variable of one combination in the summary's scenario."""
    return results[name].sel(net=combination[0], strategy=combination[1], scenario=summary["scenario"])


def heading(summary: Summary) -> str:
    """What every title says of the data behind it."""
    spread = f"{summary['seeds']} seeds, {100 * summary['level']:g} % t-intervals" if summary["seeds"] > 1 else "1 seed"
    return f"{summary['scenario']}-incremental, {spread}"
