"""What README and docs show of committed results: Markdown made of the JSON in experiments/results/, by its name."""

import math
import statistics
from collections.abc import Callable
from typing import Any

from fixed_point_table import markdown as bench_fixed_point

from bptoolkit import runs
from bptoolkit.runs.published import UNVERIFIED

Report = dict[str, Any]
STOPPING = {  # as in the JSON → as in the page
    "bptoolkit damping 0.0": "`picard()`",
    "bptoolkit damping 0.5": "`damped(0.5)`",
    "bptoolkit damping 0.9": "`damped(0.9)`",
    "bptoolkit damping 0.0, every 3": "`picard()`, judged every third step",
    "bptoolkit anderson": "`anderson()`",
    "bptoolkit broyden": "`broyden()`",
    "bptoolkit chebyshev": "`chebyshev()`",
    "bptoolkit default": "nothing said (`settle`)",
}


def stopping(report: Report) -> str:
    """Of scripts/study_stopping.py: shares of wrong results among those called converged."""
    head = ["", "converged", "off by > 3 (%)", "by > 10 (%)", "reachable but missed (%)"]
    named = {STOPPING.get(name) or str(name): row for name, row in report["methods"].items()}
    shares = lambda row: [per_cent(row[key]) for key in ("wrong_3", "wrong_10", "missed")]
    return table(head, [[name, str(row["converged"]), *shares(row)] for name, row in named.items()])


def bench_forgetting(report: Report) -> str:
    """Of scripts/bench_forgetting.py: the runner beside its bare products, memory, small nets, imports."""
    report = {name: part["measured"] for name, part in report.items()}
    mnist, memory = report["split_mnist"], report["memory"]
    ten = [row for row in report["small"] if row["seeds"] == 10]
    chosen = next(row for row in ten if row["runner_chooses_it"])
    best = {
        devices: min(row["microseconds_per_step_and_seed"] for row in ten if row["layout"].startswith(f"{devices} "))
        for devices in (1, 2)
    }
    lines = [
        f"Split MNIST, 784-400-400-10, batch 128, Adam, {mnist['updates']:,} updates with evaluation: "
        f"{mnist['ratio']:.2f} times as long as\n  its products alone, {mnist['steps_per_second']:.0f} a second.",
        f"{memory['seeds']} seeds of that net peak at {memory['peak_resident_mib']:.0f} MiB.",
        f"A 64-100-10 net, batch 32, 10 seeds: {chosen['microseconds_per_step_and_seed']:.0f} µs per update and seed "
        f"as the runner lays them\n  ({chosen['layout']}), {best[2]:.0f} µs at best on two XLA devices, "
        f"{best[1]:.0f} µs on one.",
        f"Importing the library takes {report['imports']['ratio']:.2f} times as long as importing jax, optax and flax.",
        *_beside_plain(report),
    ]
    return "\n".join(f"- {line}" for line in lines)


def published(report: Report) -> str:
    """Of scripts/reproduce.py: each figure that was measured beside the published one."""
    cells = [cell for cell in report["cells"] if cell["n"]]
    usual = statistics.mode(cell["n"] for cell in cells)
    told = [cell["near"] for cell in cells if cell["near"] is not None]
    doubtful = sum(cell["published"] is not None and cell["published"]["mark"] in UNVERIFIED for cell in cells)
    note = (
        f"Published → measured, mean ± SEM over {usual} seeds, or as many as stand behind it. "
        f"{sum(told)} of {len(told)} are within 2 combined SEMs or 1.5 points; **bold** ones are not. "
        f"† published figure from general knowledge, unverified ({doubtful} of {len(cells)}); * not to the letter of "
        "the protocol, see the JSON."
    )
    if any(cell["published"] and cell["published"]["sem"] is None for cell in cells):
        note += " Where no error was published, the published seeds are taken to scatter as ours do."
    return f"{_by_method(report, lambda cell: _beside(cell, usual))}\n\n{note}"


def _by_method(report: Report, show: Callable[[dict[str, Any]], str]) -> str:
    """Methods down, columns across, of the cells that were measured."""
    measured = {cell["column"] for cell in report["cells"] if cell["n"]}
    columns = [name for name in dict.fromkeys(cell["column"] for cell in report["cells"]) if name in measured]
    rows: dict[str, dict[str, str]] = {}
    for cell in report["cells"]:
        if cell["n"]:
            rows.setdefault(cell["method"], {})[cell["column"]] = show(cell)
    return table(["method", *columns], [[name, *(row.get(c, "") for c in columns)] for name, row in rows.items()])


def _beside(cell: dict[str, Any], usual: int) -> str:
    """`19.89 ± 0.02 → 19.92 ± 0.02`, with the number of seeds where it is not the usual one."""
    one = cell["published"]
    digits = 2 if abs(cell["measured"]) > 1 else 3
    figure = lambda mean, error: f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
    mark = "†" if one is not None and one["mark"] in UNVERIFIED else ""
    measured = figure(cell["measured"], cell["sem"])
    measured = f"**{measured}**" if cell["near"] is False else measured
    before = "–" if one is None else f"{figure(one['mean'], one['sem'])}{mark}"
    seeds = f" (n = {cell['n']})" if cell["n"] != usual else ""
    return f"{before} → {measured}{seeds}{' *' if cell['deviations'] else ''}".replace("-", "−")


def unpublished(report: Report) -> str:
    """Of scripts/reproduce.py, a table beside another's runs of the same seeds: what each has, and the difference."""
    usual = statistics.mode(cell["n"] for cell in report["cells"] if cell["n"])
    note = (
        f"Static → settling, means over the same {usual} seeds, or as many as stand behind it (mean difference ± its "
        "standard error); * not to the letter of the protocol, see the JSON."
    )
    return f"{_by_method(report, lambda cell: _pair(cell, usual))}\n\n{note}"


def _pair(cell: dict[str, Any], usual: int) -> str:
    """`99.16 → 98.20 (−0.96 ± 0.31)`, with the number of seeds where it is not the usual one."""
    seeds = f" (n = {cell['n']})" if cell["n"] != usual else ""
    end = f"{seeds}{' *' if cell['deviations'] else ''}"
    if cell["difference"] is None:
        return f"– → {cell['measured']:.2f}{end}".replace("-", "−")
    spread = f" ± {abs(cell['difference'] / cell['sems']):.2f}" if cell["sems"] else ""
    beside = f"{cell['published']['mean']:.2f} → {cell['measured']:.2f}"
    return f"{beside} ({cell['difference']:+.2f}{spread}){end}".replace("-", "−")


def static_vs_recurrent(report: Report) -> str:
    """Of scripts/answer.py: the base net's accuracy, and what each other net has more, with interval and effect."""
    base, nets = report["base"], list(dict.fromkeys(row["net"] for row in _contrasts(report)))
    head = ["data", "scenario", "strategy", base, *(f"{net} − {base}" for net in nets)]
    rows = {}
    for row in _contrasts(report):
        place = (row["run"], row["scenario"], row["strategy"])
        rows.setdefault(place, [*place, share(row["base"]["average_accuracy"])]).append(_difference(row))
    count = lambda holds: sum(holds(row["average_accuracy"]) for row in _contrasts(report))
    real = count(lambda one: one["q"] is not None and one["q"] < 0.05)
    note = (
        f"Average accuracy in %, differences in points ± half the 95 % t-interval over {_seeds(report)} paired seeds, "
        f"(effect size d). **Bold**: q < 0.05, {real} of {count(lambda one: True)} (Benjamini and "
        "Hochberg's q of exact permutation tests)."
    )
    return "\n\n".join([table(head, list(rows.values())), note, *_sizes(report)])


def _sizes(report: Report) -> list[str]:
    """What the sweeps over units found, by which the net of equal accuracy was chosen; the base net has none."""
    sweeps = [one for one in report["sweeps"] if list(one["over"]) == ["units"]]
    if not sweeps:
        return []
    units = list(dict.fromkeys(size for one in sweeps for size in one["over"]["units"]))
    seeds = " or ".join(sorted({str(one["config"]["seeds"]) for one in sweeps}))
    rows = []
    for one in sweeps:
        base = next(point for point in one["points"] if point["net"] == report["base"])
        sized = {point["values"]["units"]: point for point in one["points"] if point["net"] != report["base"]}
        rows.append([one["config"]["config"]["dataset"], _within(base), *(_within(sized.get(size)) for size in units)])
    note = (
        f"Accuracy on all ten classes at once, in % of validation rows ± half the 95 % t-interval over {seeds} seeds."
    )
    return [table(["data", report["base"], *(f"{size} units" for size in units)], rows), note]


def _within(point: dict[str, Any] | None) -> str:
    """`93.4 ± 1.1`."""
    return "–" if point is None or point["mean"] is None else f"{share(point['mean'])} ± {share(point['half_width'])}"


def _contrasts(report: Report) -> list[dict[str, Any]]:
    return [{"run": name} | row for name, run in report["runs"].items() for row in run["contrasts"]]


def _seeds(report: Report) -> str:
    return " or ".join(sorted({str(row["average_accuracy"]["n"]) for row in _contrasts(report)}))


def _difference(row: dict[str, Any]) -> str:
    """`**−3.1 ± 1.2** (−1.9)`."""
    one = row["average_accuracy"]
    if one["difference"] is None:
        return "–"
    mark = "**" if one["q"] is not None and one["q"] < 0.05 else ""
    half, effect = ("–" if one[name] is None else one[name] for name in ("half_width", "effect"))
    half = half if half == "–" else f"{100 * half:.1f}"
    effect = effect if effect == "–" else f"{effect:+.1f}"
    return f"{mark}{100 * one['difference']:+.1f} ± {half}{mark} ({effect})".replace("-", "−")


def share(value: float | None) -> str:
    """A share in per cent, to one decimal."""
    return "–" if value is None else f"{100 * value:.1f}"


def _beside_plain(report: Report) -> list[str]:
    """Strategies, the grid, how cost grows, and a PyTorch loop."""
    some, many, loop = report["strategies"], report["grid"], report["torch"]
    growth = [f"{rows['4'] / rows['1']:.1f} ({name.split(',')[0]})" for name, rows in report["growth"].items()]
    lines = [
        f"EWC with the exact Fisher information of all rows takes {some['ewc']:.2f} times as long as plain training, "
        f"replay {some['replay']:.2f} times;\n  seven strengths of EWC at once {many['ratio']:.2f} times as long as "
        f"the products of the updates of {many['nets']} nets.",
        f"Four times as much takes {', '.join(growth)} times as long.",
    ]
    if loop["times_faster"] is not None:
        lines.append(
            f"784-100-100-10, batch 10, {loop['seeds']} seeds on two devices: "
            f"{loop['microseconds_per_update_and_seed']:.0f} µs per update and seed with drawing and testing, a plain\n"
            f"  PyTorch loop without them {loop['torch_microseconds_per_update']:.0f} µs: "
            f"{loop['times_faster']:.1f} times faster. The aim was 20, and is out of "
            f"reach on this machine:\n  the products alone take "
            f"{loop['products_microseconds_on_one_device']:.0f} µs on one device, and half of that on two at best."
        )
    return lines


def table(head: list[str], rows: list[list[str]]) -> str:
    """GitHub Markdown: the first column to the left, numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def per_cent(share: float) -> str:
    """To two decimals; empty where it was not measured."""
    return "–" if math.isnan(share) else f"{100 * share:.2f}"


TABLES: dict[str, Callable[[Report], str]] = {
    "split_digits": runs.markdown_table,
    "stopping": stopping,
    "bench_forgetting": bench_forgetting,
    "bench_fixed_point": bench_fixed_point,
    "static_vs_recurrent": static_vs_recurrent,
    "vandeven2022-split_mnist": published,
    "vandeven2022-split_mnist_settling": unpublished,
    "vandeven2018-permuted_mnist": published,
    "der2020-permuted": published,
    "der2020-rotated": published,
    "gem2017-permutations": published,
    "gem2017-rotations": published,
}
