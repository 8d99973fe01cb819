"""The tables of docs/fixed_points.md from the JSON of scripts/bench_fixed_point.py."""

DEFAULT = "bptoolkit default"
COLUMNS = (
    "problem (batch × state) | ρ(J) | `implicit()`, 1 / 2 devices | best of bptoolkit | jaxopt | optimistix | torchdeq "
    "| unrolled | best other / best of ours | ours on 1 device / bare products"
)
COSTS = (
    "problem | f evaluated: `implicit()` / jaxopt / optimistix / torchdeq / unrolled | compiling, s of computing: "
    "`implicit()` / jaxopt / optimistix | memory, MB: `implicit()` / jaxopt / optimistix / unrolled"
)


def markdown(report: dict) -> str:
    """Times, then costs."""
    problems = report["problems"]
    times = [titled(COLUMNS), *(line(times_of(name, p)) for name, p in problems.items())]
    costs = [titled(COSTS), *(line(costs_of(name, p)) for name, p in problems.items())]
    return "\n".join(times) + "\n\n" + "\n".join(costs)


def titled(columns: str) -> str:
    return f"| {columns} |\n|---" + "|--:" * columns.count(" | ") + "|"


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def best(rows: dict, library: str, figure: str = "ms") -> float | None:
    """The library's fastest configuration, or the figure of it."""
    ready = [r for n, r in rows.items() if n.split()[0] == library and "ms" in r]
    return min(ready, key=lambda r: r["ms"]).get(figure) if ready else None


def times_of(name: str, problem: dict) -> list[str]:
    rows = problem["rows"]
    peers = [best(rows, library) for library in ("jaxopt", "optimistix", "torchdeq", "unrolled")]
    ours, alone = best(rows, "bptoolkit"), best({n: r for n, r in rows.items() if "devices" not in n}, "bptoolkit")
    other = min((p for p in peers if p is not None), default=None)
    default = [rows.get(n, {}).get("ms") for n in (DEFAULT, f"{DEFAULT}, 2 devices")]
    bare = rows.get("products", {}).get("ms")
    size = f"{name} ({problem['batch']} × {' × '.join(map(str, problem['state']))})"
    ratios = [ratio(other, ours), ratio(alone, bare)]
    return [size, f"{problem['radius']:.2f}", " / ".join(map(ms, default)), ms(ours), *map(ms, peers), *ratios]


def costs_of(name: str, problem: dict) -> list[str]:
    rows = problem["rows"]

    def of(figure: str, libraries: tuple[str, ...], unit: float = 1.0) -> str:
        found = [rows.get(DEFAULT, {}).get(figure), *(best(rows, library, figure) for library in libraries)]
        return " / ".join("–" if x is None else f"{x / unit:.4g}" for x in found)

    counted = of("evaluations", ("jaxopt", "optimistix", "torchdeq", "unrolled"))
    compiling = of("compile_cpu_seconds", ("jaxopt", "optimistix"))
    return [name, counted, compiling, of("bytes", ("jaxopt", "optimistix", "unrolled"), 1e6)]


def ms(x: float | None) -> str:
    return "–" if x is None else f"{x:.1f}"


def ratio(a: float | None, b: float | None) -> str:
    return "–" if a is None or b is None else f"{a / b:.2f}"
