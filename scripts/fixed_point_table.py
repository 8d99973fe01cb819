"""The tables of docs/fixed_points.md from the JSON of scripts/bench_fixed_point.py."""

from math import isnan, nan

DEFAULT = "bptoolkit default"
OTHERS = ("jaxopt", "optimistix", "torchdeq", "unrolled")
DISCS = ("easy", "hard", "spread", "wide")  # spectra that no method with a few products a step shortens
DENSER, AIM = 1.5, 2.0  # times faster than the best of the others
TIMES = (
    "problem (batch × state)",
    "ρ(J)",
    "load",
    "`implicit()`, 1 / 2 devices",
    "best of bptoolkit",
    *OTHERS,
    "best other / best of ours",
    "the same of time computed",
    "ours on 1 device / as many bare products",
)
COSTS = (
    "problem",
    "f evaluated: `implicit()` / " + " / ".join(OTHERS),
    "compiling, s of computing: `implicit()` / jaxopt / optimistix",
    "memory, MB: `implicit()` / jaxopt / optimistix / unrolled",
)


def markdown(report: dict) -> str:
    """What is reached, times, then costs, memory against the steps allowed where that was measured."""
    problems = report["problems"]
    times = [titled(TIMES), *(line(times_of(name, p)) for name, p in problems.items())]
    counted = {name: p for name, p in problems.items() if "evaluations" in p["rows"].get(DEFAULT, {})}
    costs = [titled(COSTS), *(line(costs_of(name, p)) for name, p in counted.items())]
    remembered = [memory_of(name, p["memory"]) for name, p in problems.items() if "memory" in p]
    older = [name for name, p in problems.items() if not any("cpu_ms" in row for row in p["rows"].values())]
    stale = f"Timed by an earlier state of library and script: {', '.join(older)}."
    return "\n\n".join(["\n".join(times), *[stale] * bool(older), reached(problems), "\n".join(costs), *remembered])


def titled(columns: tuple[str, ...]) -> str:
    return line(list(columns)) + "\n|---" + "|--:" * (len(columns) - 1) + "|"


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def reached(problems: dict) -> str:
    """The aims in a sentence each, by the times that passed."""
    faster = [name for name, p in problems.items() if speedup(p["rows"]) >= (DENSER if name in DISCS else AIM)]
    lean = [name for name, p in problems.items() if over_bare(p["rows"]) <= 1.5]
    compiled = [name for name, p in problems.items() if "compile_cpu_seconds" in p["rows"].get(DEFAULT, {})]
    quick = [name for name in compiled if compiles_no_slower(problems[name]["rows"])]
    listed = lambda names: ", ".join(names) if names else "none"
    return "\n".join(
        [
            f"- Twice as fast as the best other ({DENSER} times on the discs {', '.join(DISCS)}): reached on "
            f"{listed(faster)}; missed on {listed([n for n in problems if n not in faster])}.",
            f"- At most 1.5 times the bare products: reached on {listed(lean)}; missed on "
            f"{listed([n for n in problems if n not in lean])}.",
            f"- Compiling no slower than jaxopt: reached on {listed(quick)}; missed on "
            f"{listed([n for n in compiled if n not in quick])}.",
        ]
    )


def speedup(rows: dict, figure: str = "ms") -> float:
    """The best other's time over ours."""
    ours, known = best(rows, "bptoolkit", figure), [best(rows, library, figure) for library in OTHERS]
    others = [x for x in known if x is not None]
    return min(others) / ours if others and ours is not None else nan


def over_bare(rows: dict) -> float:
    """Our time on one device over that of as many bare products as its steps; they were timed for those of another."""
    single = {n: r for n, r in rows.items() if "devices" not in n}
    alone, steps, bare = best(single, "bptoolkit"), best(single, "bptoolkit", "steps"), rows.get("products")
    if alone is None or steps is None or bare is None:
        return nan
    return alone / (bare["ms"] * sum(steps) / sum(bare["steps"]))


def compiles_no_slower(rows: dict) -> bool:
    ours, theirs = rows.get(DEFAULT, {}).get("compile_cpu_seconds"), best(rows, "jaxopt", "compile_cpu_seconds")
    return ours is not None and theirs is not None and ours <= theirs


def best(rows: dict, library: str, figure: str = "ms"):
    """A figure of the library's fastest configuration."""
    ready = [r for n, r in rows.items() if n.split()[0] == library and "ms" in r]
    return min(ready, key=lambda r: r["ms"]).get(figure) if ready else None


def times_of(name: str, problem: dict) -> list[str]:
    rows = problem["rows"]
    default = [rows.get(n, {}).get("ms") for n in (DEFAULT, f"{DEFAULT}, 2 devices")]
    size = f"{name} ({problem['batch']} × {' × '.join(map(str, problem['state']))})"
    ratios = ["–" if isnan(x) else f"{x:.2f}" for x in (speedup(rows), speedup(rows, "cpu_ms"), over_bare(rows))]
    ours = [best(rows, library) for library in ("bptoolkit", *OTHERS)]
    about = [size, f"{problem['radius']:.2f}", f"{problem['load'][0]:.0f}"]
    return [*about, " / ".join(map(ms, default)), *map(ms, ours), *ratios]


def costs_of(name: str, problem: dict) -> list[str]:
    rows = problem["rows"]

    def of(figure: str, libraries: tuple[str, ...], unit: float = 1.0) -> str:
        found = [rows.get(DEFAULT, {}).get(figure), *(best(rows, library, figure) for library in libraries)]
        return " / ".join("–" if x is None else f"{x / unit:.3g}" for x in found)

    compiling = of("compile_cpu_seconds", ("jaxopt", "optimistix"))
    return [name, of("evaluations", OTHERS), compiling, of("bytes", ("jaxopt", "optimistix", "unrolled"), 1e6)]


def memory_of(name: str, memory: dict) -> str:
    """Peak memory against the steps allowed, in a sentence."""
    megabytes = {kind: f"{size / 1e6:.1f}" for kind, size in memory.items()}
    return (
        f"Allowed 50 and 500 steps, `implicit()` needs {megabytes['implicit, 50']} and {megabytes['implicit, 500']} MB "
        f"on the {name} problem; unrolled as often, {megabytes['unrolled, 50']} and {megabytes['unrolled, 500']} MB."
    )


def ms(x: float | None) -> str:
    return "–" if x is None else f"{x:.1f}"
