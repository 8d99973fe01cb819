"""Time value-and-gradient of fixed points at equal true gradient error, beside other libraries; prints JSON.

    python scripts/bench_fixed_point.py --out bench.json         (half an hour on 2 cores, most of it compiling)
    python scripts/bench_fixed_point.py --problems easy hard --libraries bptoolkit jaxopt --out bench.json
    python scripts/bench_fixed_point.py --table bench.json       (the tables of docs/fixed_points.md)

Every library and configuration is taken at the loosest tolerance, in half decades, whose gradient with respect to W is
within 1e-4 (relative, Frobenius) of a float64 reference made by elimination.  Then all take turns, and medians are
reported: of the time that passes, and of the time that the process computes, which a busy machine disturbs less.
`2 devices` has the batch split over one XLA device per core, where its data already lie; other libraries run as their
users run them, on a batched map.  `products` times the bare matrix products of as many steps as the slowest sample of
bptoolkit's fastest configuration needed, forward and backward, on one device.  Of the default and of each library's
fastest configuration f is counted in a run of its own.  Nothing is compiled from a cache.
"""

import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from fixed_point_peers import (
    MAX_STEPS,
    PEERS,
    TOLERANCES,
    Counter,
    Gradient,
    Make,
    compiled,
    on_device,
    others,
    through,
)
from fixed_point_problems import PROBLEMS, Problem
from fixed_point_table import DEFAULT, markdown

from bptoolkit import fixed_point as fp
from bptoolkit.runs.devices import prepare
from bptoolkit.runs.environment import environment, provenance

ACCURATE = 1e-4
LIBRARIES = ("bptoolkit", *PEERS, "unrolled")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to time."""

    problems: tuple[str, ...] = tuple(PROBLEMS)
    libraries: tuple[str, ...] = LIBRARIES
    repeats: int = 9
    memory: bool = False  # of programs for 50 and 500 steps, too
    out: Path | None = None  # JSON, kept up to date after each problem; what it holds of other problems stays
    table: Path | None = None  # time nothing, print the tables of this JSON


def main(options: Options) -> None:
    if options.table is not None:
        print(markdown(json.loads(options.table.read_text("utf-8"))))
        return
    prepare(jax.config, None)
    report: dict[str, Any] = {"problems": {}}
    made = provenance(environment({}), (*PEERS, "lineax", "torch"))
    if options.out is not None and options.out.exists():
        report = json.loads(options.out.read_text("utf-8"))
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    report |= {"jax": jax.__version__, "devices": len(jax.devices()), "accuracy": ACCURATE, "missing": missing}
    for name in options.problems:
        problem = PROBLEMS[name]()
        jax.config.update("jax_enable_compilation_cache", False)
        report["problems"][name] = study(problem, options) | {"made": made}
        print(name, {n: row.get("ms") for n, row in report["problems"][name]["rows"].items()}, file=sys.stderr)
        if options.out is not None:
            options.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if options.out is None:
        print(json.dumps(report, indent=1))


def study(problem: Problem, options: Options) -> dict:
    chosen, rows = {}, {}
    for name, make in candidates(problem, options.libraries):
        found, rows[name] = loosest(make, problem.gradient)
        if found is not None:
            chosen[name] = found
    take_turns(chosen, rows, options.repeats)
    ours = {n: r for n, r in rows.items() if n.startswith("bptoolkit") and "ms" in r}
    if ours:
        rows["products"] = products(problem, min(ours.values(), key=lambda r: r["ms"])["steps"], options.repeats)
    counter = Counter(problem)
    makes = dict(candidates(counter.problem, options.libraries))
    for name in {DEFAULT, *fastest(rows)} & set(chosen):
        rows[name]["evaluations"] = counter.count(makes[name](rows[name]["tolerance"]))
    about = {"batch": len(problem.x), "state": list(problem.c.shape), "radius": round(problem.radius, 3)}
    measured = {"memory": memory(problem)} if options.memory else {}
    return about | {"load": os.getloadavg(), "rows": rows} | measured


def loosest(make: Make, exact: np.ndarray) -> tuple[Gradient | None, dict]:
    """The first tolerance that is accurate."""
    error = np.inf
    for tolerance in TOLERANCES:
        try:
            gradient = make(tolerance)
            value = np.asarray(gradient.call(), float)
        except Exception as problem:  # another library may raise where it does not converge
            return None, {"failed": type(problem).__name__}
        error = np.linalg.norm(value - exact) / np.linalg.norm(exact)
        if error <= ACCURATE:
            steps = {} if gradient.told is None else {"steps": gradient.told()}
            return gradient, {"tolerance": tolerance, "error": float(error)} | steps | (gradient.cost or {})
    return None, {"failed": f"error {error:.1e} at the tightest tolerance"}


def take_turns(chosen: dict[str, Gradient], rows: dict[str, dict], repeats: int) -> None:
    """Medians of the milliseconds that pass and that are computed, over interleaved runs."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for _ in range(repeats):
        for name, gradient in chosen.items():
            seconds[name].append(timed(gradient.call))
    for name, pairs in seconds.items():
        passed, computed = (round(1e3 * float(x), 3) for x in np.median(pairs, axis=0))
        rows[name] |= {"ms": passed, "cpu_ms": computed}


def timed(call: Callable) -> tuple[float, float]:
    """Seconds that pass, and that all threads of this process compute."""
    began, before = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - began, time.process_time() - before


def fastest(rows: dict[str, dict]) -> list[str]:
    """Each library's fastest configuration, on one device."""
    ready = {n: r["ms"] for n, r in rows.items() if "ms" in r and n != "products" and "devices" not in n}
    libraries = {name.split()[0] for name in ready}
    return [min((n for n in ready if n.split()[0] == library), key=lambda n: ready[n]) for library in libraries]


def memory(problem: Problem) -> dict:
    """Bytes that compiled programs need beside arguments and results, for at most 50 and 500 steps."""
    stop = lambda steps: fp.Stop(rtol=1e-4, max_steps=steps)
    relax = {f"implicit, {k}": lambda _, k=k: fp.implicit(stop=stop(k)) for k in (50, 500)}
    programs = {name: ours_by(problem, make, 1)(1e-4) for name, make in relax.items()}
    programs |= {f"unrolled, {k}": through(problem, k) for k in (50, 500)}
    return {name: (gradient.cost or {})["bytes"] for name, gradient in programs.items()}


def candidates(problem: Problem, libraries: tuple[str, ...]) -> Iterator[tuple[str, Make]]:
    if "bptoolkit" in libraries:
        yield from ours(problem)
    yield from others(problem, libraries)


def ours(problem: Problem) -> Iterator[tuple[str, Make]]:
    menu = {
        "default": lambda s: fp.implicit(None, fp.exact(s), s),
        "picard + bicgstab": lambda s: fp.implicit(fp.picard(), fp.bicgstab(s), s, every=3),
        "picard + almeida_pineda": lambda s: fp.implicit(fp.picard(), fp.almeida_pineda(stop=s, every=3), s, every=3),
        "chebyshev + bicgstab": lambda s: fp.implicit(fp.chebyshev(), fp.bicgstab(s), s, every=2),
    }
    for name, relax in menu.items():
        both = {1, len(jax.devices())} if name == "default" else {1}
        for devices in sorted(both):
            label = f"bptoolkit {name}" + (f", {devices} devices" if devices > 1 else "")
            yield label, ours_by(problem, lambda t, relax=relax: relax(fp.Stop(rtol=t, max_steps=MAX_STEPS)), devices)


def ours_by(problem: Problem, relax: Callable, devices: int) -> Make:
    """One program for all tolerances, which lies on one device or has the batch split over several."""

    def one(w, x, c, probe, tolerance):
        solution = relax(tolerance)(lambda a, z: problem.step(a[0], z, a[1]), (w, x), jnp.zeros_like(x), probe=probe)
        return jnp.sum(c * solution.value), solution.steps

    def batch(w, x, c, tolerance):
        def loss(w, probes):
            values, steps = jax.vmap(one, in_axes=(None, 0, None, 0, None))(w, x, c, probes, tolerance)
            return jnp.sum(values), steps

        grads, steps = jax.grad(loss, argnums=(0, 1), has_aux=True)(w, jnp.zeros((len(x), 5), x.dtype))
        told = jnp.stack([jnp.max(steps).astype(x.dtype), jnp.max(grads[1][:, 0])])
        return (lax.psum(grads[0], "b"), lax.pmax(told, "b")) if devices > 1 else (grads[0], told)

    arguments = on_device(problem)
    if devices > 1:
        mesh, rows, whole = Mesh(np.array(jax.devices()), ("b",)), PartitionSpec("b"), PartitionSpec()
        specs = (whole, rows, whole)
        batch = jax.shard_map(batch, mesh=mesh, in_specs=(*specs, whole), out_specs=whole, check_vma=False)
        arguments = tuple(jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arguments, specs, strict=True))
    known = []

    def make(tolerance: float) -> Gradient:
        if not known:
            known.append(compiled(batch, arguments))
        program, cost = known[0]
        return Gradient(lambda: program(tolerance)[0], lambda: [int(s) for s in program(tolerance)[1]], cost)

    return make


def products(problem: Problem, steps: list[int], repeats: int) -> dict:
    """As many bare products, forward by A and backward by its transpose."""
    forward, backward = steps
    w, x, _ = on_device(problem)

    @jax.jit
    def run(w, x):
        push = lambda z: problem.linear(w, z)
        pull = jax.linear_transpose(push, x)
        z = lax.fori_loop(0, forward, lambda _, z: push(z), x)
        return lax.fori_loop(0, backward, lambda _, z: pull(z)[0], z)

    jax.block_until_ready(run(w, x))
    passed, computed = np.median([timed(lambda: run(w, x)) for _ in range(repeats)], axis=0)
    return {"steps": steps, "ms": round(1e3 * float(passed), 3), "cpu_ms": round(1e3 * float(computed), 3)}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
