"""How often is a result that calls itself converged wrong?  Random maps with known fixed points; prints a table.

    python scripts/study_stopping.py --out stopping.json                  (10,000 maps; some minutes on 2 cores)
    python scripts/study_stopping.py --maps 300

Kinds: affine maps with a symmetric matrix, a random one, plane rotations, a Jordan block; tanh networks; affine maps
that turn some direction round (period 2); maps that are NaN away from their fixed point.  Spectral radius uniform in
[0, 1.05], relative tolerance 1e-4, float64, at most 2000 steps.  `wrong` counts results that are off by more than three
and ten tolerances (in the JSON by more than one, too), over those called converged; `missed` those not called
converged, over the maps whose iterates come within the tolerance in the steps allowed.  Jordan blocks are counted
apart: no residual can tell there.

Other libraries are asked for the same: a change (optimistix) or a residual (jaxopt) of 1e-4 of the solution's norm.
optimistix's own measure is stricter, 1e-4 of each component, so that the smallest one decides ("each component").
torchdeq has no flag to be held to.
"""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bptoolkit import fixed_point as fp
from bptoolkit.runs.environment import environment, provenance

UNITS, RTOL, MAX_STEPS, LARGEST = 16, 1e-4, 2000, 1.05
KINDS = ("symmetric", "random", "rotations", "tanh", "turning", "nan", "jordan")


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to study."""

    maps: int = 10_000
    out: Path | None = None  # JSON, beside the table


def main(options: Options) -> None:
    jax.config.update("jax_enable_x64", True)
    each = -(-options.maps // len(KINDS))
    print(f"{each * len(KINDS)} maps, relative tolerance {RTOL}; shares of those called converged, in per cent")
    print(f"{'method':32} {'converged':>9} {'off > 3':>8} {'off > 10':>8} {'missed':>8}   Jordan: off > 3, > 10")
    table = {}
    for name, (settle, plain) in methods().items():
        table[name] = row = counted(settle, plain, each)
        shares = [f"{100 * row[k]:8.2f}" for k in ("wrong_3", "wrong_10", "missed")]
        jordan = ", ".join(f"{100 * row['jordan'][k]:.1f}" for k in ("wrong_3", "wrong_10"))
        print(f"{name:32} {row['converged']:9d} {' '.join(shares)}   {jordan}", flush=True)
    if options.out is not None:
        record = {
            "made": provenance(environment({}), ("jaxopt", "optimistix")),
            "maps": each * len(KINDS),
            "rtol": RTOL,
            "max_steps": MAX_STEPS,
            "methods": table,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def counted(settle: Callable, solver: optax.GradientTransformation | None, each: int) -> dict:
    """One method over all kinds."""
    found = {kind: judged(kind, settle, solver, each) for kind in KINDS}
    usual = jax.tree.map(lambda *x: np.concatenate(x), *(found[kind] for kind in KINDS if kind != "jordan"))
    return shares(usual) | {"jordan": shares(found["jordan"])}


def judged(kind: str, settle: Callable, solver, each: int) -> dict[str, np.ndarray]:
    def one(key):
        f, exact = drawn(kind, key)
        value, converged = settle(f, jnp.zeros(UNITS), jnp.linalg.norm(exact))
        off = jnp.linalg.norm(value - exact) / (RTOL * jnp.linalg.norm(exact))
        return {
            "converged": converged,
            "off": jnp.where(jnp.isfinite(off), off, jnp.inf),
            "reachable": jnp.zeros((), bool) if solver is None else reaches(f, exact, solver),
        }

    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), KINDS.index(kind)), each)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))


def shares(found: dict[str, np.ndarray]) -> dict:
    converged, off, reachable = found["converged"], found["off"], found["reachable"]
    called, able = max(int(converged.sum()), 1), int(reachable.sum())
    return {
        "converged": int(converged.sum()),
        "wrong_1": float((converged & (off > 1)).sum() / called),
        "wrong_3": float((converged & (off > 3)).sum() / called),
        "wrong_10": float((converged & (off > 10)).sum() / called),
        "worst": float(np.max(np.where(converged, off, 0))),
        "reachable": able,
        "missed": float((reachable & ~converged).sum() / able) if able else float("nan"),
    }


def drawn(kind: str, key) -> tuple[Callable, jax.Array]:
    """A map and its fixed point."""
    q_key, s_key, a_key, m_key, z_key, r_key = jax.random.split(key, 6)
    rho = jax.random.uniform(r_key, maxval=LARGEST)
    exact = jax.random.normal(z_key, (UNITS,))
    q = jnp.linalg.qr(jax.random.normal(q_key, (UNITS, UNITS)))[0]
    spread = jax.random.uniform(s_key, (UNITS,), minval=-1).at[0].set(1.0)
    angles = jax.random.uniform(a_key, (UNITS // 2,), maxval=jnp.pi)
    gauss = jax.random.normal(m_key, (UNITS, UNITS))
    matrix = {
        "symmetric": lambda: q @ jnp.diag(spread) @ q.T,
        "nan": lambda: q @ jnp.diag(spread) @ q.T,
        "turning": lambda: q @ jnp.diag(-jnp.abs(spread)) @ q.T,
        "random": lambda: gauss / jnp.max(jnp.abs(jnp.linalg.eigvals(gauss))),
        "tanh": lambda: gauss / jnp.max(jnp.abs(jnp.linalg.eigvals(gauss))),
        "rotations": lambda: q @ jax.scipy.linalg.block_diag(*map(turn, angles)) @ q.T,
        "jordan": lambda: q @ (jnp.eye(UNITS) + jnp.eye(UNITS, k=1) / jnp.maximum(rho, 0.1)) @ q.T,
    }[kind]()
    m = jnp.where(kind == "turning", 1.0, rho) * matrix  # exactly −1: two states in turn
    if kind == "tanh":
        exact = jnp.tanh(exact)
        current = jnp.arctanh(exact) - m @ exact
        return lambda z: jnp.tanh(m @ z + current), exact
    affine = lambda z: m @ (z - exact) + exact
    if kind == "nan":
        far = 1.5 * jnp.linalg.norm(exact)
        return lambda z: jnp.where(jnp.linalg.norm(z - exact) > far, jnp.nan, affine(z)), exact
    return affine, exact


def turn(angle: jax.Array) -> jax.Array:
    return jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])


def reaches(f: Callable, exact: jax.Array, solver: optax.GradientTransformation) -> jax.Array:
    """Whether some iterate within the steps allowed comes within the tolerance and the last one is still there."""
    update = optax.with_extra_args_support(solver).update
    close = lambda z: jnp.linalg.norm(z - exact) <= RTOL * jnp.linalg.norm(exact)

    def step(at, _):
        z, memory = at
        moved, memory = update(z - f(z), memory, z, f=f)
        return (z + moved, memory), None

    start = jnp.zeros(UNITS)
    return close(lax.scan(step, (start, solver.init(start)), length=MAX_STEPS)[0][0])


def methods() -> dict[str, tuple[Callable, optax.GradientTransformation | None]]:
    """Name: how it settles (f, z0, size of the solution) -> (value, called converged), and its steps if plain."""

    def by_solver(solver, every, f, z0, _):
        solution = fp.solve(f, z0, solver, fp.Stop(RTOL, 0.0, MAX_STEPS), every=every)
        return solution.value, solution.status == fp.Status.CONVERGED

    def by_default(f, z0, _):
        solution = fp.settle(f, z0, fp.Stop(RTOL, 0.0, MAX_STEPS))
        return solution.value, solution.status == fp.Status.CONVERGED

    plain = {f"damping {d}": fp.damped(d) for d in (0.0, 0.5, 0.9)}
    ours = {f"bptoolkit {name}": (partial(by_solver, s, 1), s) for name, s in plain.items()}
    ours |= {
        "bptoolkit damping 0.0, every 3": (partial(by_solver, plain["damping 0.0"], 3), plain["damping 0.0"]),
        "bptoolkit anderson": (partial(by_solver, fp.anderson(), 1), None),
        "bptoolkit broyden": (partial(by_solver, fp.broyden(), 1), None),
        "bptoolkit chebyshev": (partial(by_solver, fp.chebyshev(), 1), None),
        "bptoolkit default": (by_default, None),
    }
    return ours | by_optimistix(plain) | by_jaxopt()


def by_optimistix(plain: dict) -> dict:
    if importlib.util.find_spec("optimistix") is None:
        return {}
    import optimistix  # pyright: ignore[reportMissingImports]

    def settle(damp, whole, f, z0, size):
        measure = (
            {"rtol": 0.0, "atol": RTOL * size, "norm": optimistix.two_norm} if whole else {"rtol": RTOL, "atol": 0.0}
        )
        solver = optimistix.FixedPointIteration(damp=damp, **measure)
        found = optimistix.fixed_point(lambda z, _: f(z), solver, z0, max_steps=MAX_STEPS, throw=False)
        return found.value, found.result == optimistix.RESULTS.successful

    return {
        f"optimistix {name}{'' if whole else ', each component'}": (partial(settle, float(name.split()[1]), whole), s)
        for whole in (True, False)
        for name, s in plain.items()
    }


def by_jaxopt() -> dict:
    if importlib.util.find_spec("jaxopt") is None:
        return {}
    import jaxopt  # pyright: ignore[reportMissingImports]

    def settle(make, f, z0, size):
        found = make(f, maxiter=MAX_STEPS, tol=RTOL * size, implicit_diff=False).run(z0)
        return found.params, found.state.error <= RTOL * size

    anderson = partial(jaxopt.AndersonAcceleration, history_size=5)
    return {
        "jaxopt picard": (partial(settle, jaxopt.FixedPointIteration), None),
        "jaxopt anderson": (partial(settle, anderson), None),
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
