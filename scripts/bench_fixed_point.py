"""Time value-and-gradient of fixed points at equal true gradient error, beside other libraries; prints JSON.

    python scripts/bench_fixed_point.py --out bench.json         (some ten minutes on 2 cores, most of them compiling)
    python scripts/bench_fixed_point.py --problems easy hard --libraries bptoolkit jaxopt

Every library and configuration is taken at the loosest tolerance, in half decades, whose gradient with respect to W is
within 1e-4 (relative, Frobenius) of a float64 reference made by elimination.  Then all take turns, and medians are
reported.  `2 devices` has the batch split over one XLA device per core; other libraries run as their users run them,
on a batched map.  `products` times the bare matrix products of as many steps as the slowest sample of bptoolkit's
fastest configuration needed, forward and backward, on one device.  Libraries that are not installed are named.
"""

import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from jax.sharding import Mesh, PartitionSpec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from fixed_point_problems import PROBLEMS, Problem

from bptoolkit import fixed_point as fp
from bptoolkit.runs.devices import prepare

TOLERANCES = [10 ** (-k / 2) for k in range(2, 14)]
ACCURATE = 1e-4
MAX_STEPS = 2000
PEERS = ("jaxopt", "optimistix")

Gradient = Callable[[jax.Array, jax.Array], jax.Array]  # (w, x) -> ∂loss/∂w


@dataclasses.dataclass(frozen=True)
class Options:
    """What to time."""

    problems: tuple[str, ...] = tuple(PROBLEMS)
    libraries: tuple[str, ...] = ("bptoolkit", *PEERS, "unrolled")
    repeats: int = 9
    out: Path | None = None  # JSON; the terminal if left out


def main(options: Options) -> None:
    prepare(jax.config, None)
    report = {
        "jax": jax.__version__,
        "devices": len(jax.devices()),
        "load": os.getloadavg(),
        "accuracy": ACCURATE,
        "missing": [name for name in PEERS if importlib.util.find_spec(name) is None],
        "problems": {name: study(PROBLEMS[name](), options) for name in options.problems},
    }
    text = json.dumps(report, indent=1)
    print(text) if options.out is None else options.out.write_text(text + "\n", "utf-8")


def study(problem: Problem, options: Options) -> dict:
    w, x = jnp.asarray(problem.w, jnp.float32), jnp.asarray(problem.x, jnp.float32)
    chosen, rows = {}, {}
    for name, make in candidates(problem, options.libraries):
        found = loosest(make, w, x, problem.gradient)
        rows[name] = found[1]
        if found[0] is not None:
            chosen[name] = found[0]
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(options.repeats):
        for name, gradient in chosen.items():
            seconds[name].append(timed(gradient, w, x))
    for name, times in seconds.items():
        rows[name]["ms"] = round(1e3 * float(np.median(times)), 3)
    ours = {n: r for n, r in rows.items() if n.startswith("bptoolkit") and "ms" in r}
    if ours:
        rows["products"] = products(min(ours.values(), key=lambda r: r["ms"])["steps"], w, x, options.repeats)
    print({name: row.get("ms") for name, row in rows.items()}, file=sys.stderr)
    return {"batch": len(x), "n": len(w), "radius": round(problem.radius, 3), "rows": rows}


def loosest(make: Callable[[float], Gradient], w, x, exact: np.ndarray) -> tuple[Gradient | None, dict]:
    """The first tolerance that is accurate, and what compiling it took."""
    error = np.inf
    for tolerance in TOLERANCES:
        gradient = make(tolerance)
        began = time.perf_counter()
        try:
            value = np.asarray(gradient(w, x), float)
        except Exception as problem:  # another library may raise where it does not converge
            return None, {"failed": type(problem).__name__}
        compiling = time.perf_counter() - began
        error = np.linalg.norm(value - exact) / np.linalg.norm(exact)
        if error <= ACCURATE:
            told = getattr(gradient, "steps", None)
            steps = {} if told is None else {"steps": [int(s) for s in told(w, x)]}
            row = {"tolerance": tolerance, "error": float(error), "first_call_seconds": round(compiling, 2)}
            return gradient, row | steps
    return None, {"failed": f"error {error:.1e} at the tightest tolerance"}


def candidates(problem: Problem, libraries: tuple[str, ...]) -> Iterator[tuple[str, Callable[[float], Gradient]]]:
    c = jnp.asarray(problem.c, jnp.float32)
    if "bptoolkit" in libraries:
        yield from ours(c)
    if "jaxopt" in libraries and importlib.util.find_spec("jaxopt"):
        yield from by_jaxopt(c)
    if "optimistix" in libraries and importlib.util.find_spec("optimistix"):
        yield from by_optimistix(c)
    if "unrolled" in libraries:
        yield "unrolled", partial(unrolled, c)


def ours(c: jax.Array) -> Iterator[tuple[str, Callable[[float], Gradient]]]:
    stop = lambda tolerance: fp.Stop(rtol=tolerance, max_steps=MAX_STEPS)
    menu = {
        "default": lambda s: fp.implicit(None, fp.exact(s), s),
        "picard + almeida_pineda": lambda s: fp.implicit(fp.picard(), fp.almeida_pineda(stop=s, every=3), s, every=3),
        "picard + bicgstab": lambda s: fp.implicit(fp.picard(), fp.bicgstab(s), s, every=3),
        "picard + gmres": lambda s: fp.implicit(fp.picard(), fp.gmres(8, s), s, every=3),
        "anderson + gmres": lambda s: fp.implicit(fp.anderson(), fp.gmres(8, s), s),
        "chebyshev + bicgstab": lambda s: fp.implicit(fp.chebyshev(), fp.bicgstab(s), s, every=2),
        "chebyshev + chebyshev": lambda s: fp.implicit(
            fp.chebyshev(), fp.almeida_pineda(fp.chebyshev(), s, every=2), s, every=2
        ),
    }
    for name, relax in menu.items():
        for devices in sorted({1, len(jax.devices())}):
            label = f"bptoolkit {name}" + (f", {devices} devices" if devices > 1 else "")
            yield label, partial(_ours, c, lambda tolerance, relax=relax: relax(stop(tolerance)), devices)


def _ours(c: jax.Array, relax: Callable, devices: int, tolerance: float) -> Gradient:
    """One program for all tolerances."""

    def one(w, x, probe, tolerance):
        solution = relax(tolerance)(lambda a, z: jnp.tanh(a[0] @ z + a[1]), (w, x), jnp.zeros_like(x), probe=probe)
        return c @ solution.value, solution.steps

    def batch(w, x, tolerance):
        def loss(w, probes):
            values, steps = jax.vmap(one, in_axes=(None, 0, 0, None))(w, x, probes, tolerance)
            return jnp.sum(values), steps

        grads, steps = jax.grad(loss, argnums=(0, 1), has_aux=True)(w, jnp.zeros((len(x), 5), x.dtype))
        told = jnp.stack([jnp.max(steps).astype(x.dtype), jnp.max(grads[1][:, 0])])
        return (lax.psum(grads[0], "b"), lax.pmax(told, "b")) if devices > 1 else (grads[0], told)

    if devices > 1:
        mesh, rows, whole = Mesh(np.array(jax.devices()), ("b",)), PartitionSpec("b"), PartitionSpec()
        batch = jax.shard_map(batch, mesh=mesh, in_specs=(whole, rows, whole), out_specs=whole, check_vma=False)
    key = (id(c), id(relax), devices)
    program = _compiled.setdefault(key, jax.jit(batch))
    gradient = lambda w, x: program(w, x, jnp.float32(tolerance))[0]
    gradient.steps = lambda w, x: program(w, x, jnp.float32(tolerance))[1]  # type: ignore[attr-defined]
    return gradient


_compiled: dict[tuple, Callable] = {}


def by_jaxopt(c: jax.Array) -> Iterator[tuple[str, Callable[[float], Gradient]]]:
    import jaxopt  # pyright: ignore[reportMissingImports]
    from jaxopt import linear_solve  # pyright: ignore[reportMissingImports]

    f = lambda z, w, x: jnp.tanh(z @ w.T + x)
    linear = {
        "bicgstab": linear_solve.solve_bicgstab,
        "gmres": linear_solve.solve_gmres,
        "normal cg": linear_solve.solve_normal_cg,
    }
    forward = {
        "picard": jaxopt.FixedPointIteration,
        "anderson": partial(jaxopt.AndersonAcceleration, history_size=5, ridge=1e-6),
    }

    def make(solver, solve, tolerance) -> Gradient:
        backward = partial(solve, tol=tolerance)
        inner = solver(f, maxiter=MAX_STEPS, tol=tolerance, implicit_diff=True, implicit_diff_solve=backward)
        loss = lambda w, x: jnp.sum(inner.run(jnp.zeros_like(x), w, x).params @ c)
        return jax.jit(jax.grad(loss))

    for a, solver in forward.items():
        for b, solve in linear.items():
            yield f"jaxopt {a} + {b}", partial(make, solver, solve)


def by_optimistix(c: jax.Array) -> Iterator[tuple[str, Callable[[float], Gradient]]]:
    import lineax  # pyright: ignore[reportMissingImports]
    import optimistix  # pyright: ignore[reportMissingImports]

    def make(linear, batched, tolerance) -> Gradient:
        solver = optimistix.FixedPointIteration(rtol=tolerance, atol=tolerance)
        adjoint = optimistix.ImplicitAdjoint(linear_solver=linear(tolerance))
        f = lambda z, a: jnp.tanh(z @ a[0].T + a[1])

        def settle(w, x):
            return optimistix.fixed_point(
                f, solver, jnp.zeros_like(x), (w, x), max_steps=MAX_STEPS, adjoint=adjoint, throw=False
            ).value

        whole = settle if batched else jax.vmap(settle, in_axes=(None, 0))
        return jax.jit(jax.grad(lambda w, x: jnp.sum(whole(w, x) @ c)))

    gmres = lambda t: lineax.GMRES(rtol=t, atol=t)
    bicgstab = lambda t: lineax.BiCGStab(rtol=t, atol=t)
    yield "optimistix picard + gmres", partial(make, gmres, True)
    yield "optimistix picard + bicgstab", partial(make, bicgstab, True)
    yield "optimistix picard + lu, vmapped", partial(make, lambda _: lineax.LU(), False)


def unrolled(c: jax.Array, tolerance: float) -> Gradient:
    """Backpropagation through as many steps as half decades say: 4, 6, 9, …"""
    steps = round(4 * 1.6 ** TOLERANCES.index(tolerance))
    walk = lambda w, x: lax.scan(lambda z, _: (jnp.tanh(z @ w.T + x), None), jnp.zeros_like(x), length=steps)[0]
    return jax.jit(jax.grad(lambda w, x: jnp.sum(walk(w, x) @ c)))


def products(steps: list[int], w, x, repeats: int) -> dict:
    """As many bare products, forward by W and backward by its transpose."""
    forward, backward = steps

    @jax.jit
    def run(w, x):
        z = lax.fori_loop(0, forward, lambda _, z: z @ w.T, x)
        return lax.fori_loop(0, backward, lambda _, z: z @ w, z)

    jax.block_until_ready(run(w, x))
    return {"steps": steps, "ms": round(1e3 * float(np.median([timed(run, w, x) for _ in range(repeats)])), 3)}


def timed(function: Callable, w, x) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function(w, x))
    return time.perf_counter() - began


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
