"""The energy of a continuous Hopfield net along Euler steps z ← z + dt (g(Wz + d) − z), and where they end.

    E(z) = −½ zᵀWz − dᵀz + Σ_i ∫₀^{z_i} g⁻¹        never rises if  dt ≤ 2/(1 − λ_min(W))

For, with Φ(z) = Σ ∫ g⁻¹ and Δ = g(u) − z, Φ(z + dt Δ) − dt uᵀΔ − Φ(z) ≤ −½ dt (2 − dt) ‖Δ‖² (Φ is convex with modulus
1, as g′ ≤ 1, and g(u) minimises Φ(v) − uᵀv), and the quadratic rest is −½ dt² ΔᵀWΔ ≤ −½ dt² λ_min ‖Δ‖².  So dt = 1,
which is Picard, is safe only while λ_min ≥ −1; below that it may jump for ever between two points.

Run:    python scripts/study.py hopfield_energy
Reference: Hopfield (1984), PNAS 81; Fogelman Soulié, Mejia, Goles & Martinez (1989), Complex Systems 3, for cycles.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bptoolkit import fixed_point as fp
from bptoolkit import models
from bptoolkit.fixed_point.stability import symmetric
from bptoolkit.runs.fields import Count, Positive, Range, Some, Whole
from bptoolkit.runs.figures.look import COLOURS
from bptoolkit.runs.proportion import wilson
from experiments.studies.canvas import canvas, floats

QUESTION = "Does the energy of a Hopfield net ever rise while it settles, and how often does Picard fall into a cycle?"


@dataclass(frozen=True)
class Config:
    """Every field is a flag of `scripts/study.py`."""

    inputs: Count = 8
    units: Count = 64
    gains: Some[Positive] = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)  # largest |λ(W)|
    dts: Some[Positive] = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    seeds: Count = 200  # nets, each with one input and one start, both random
    steps: Annotated[int, Range(2)] = 100  # along which the energy is followed
    max_steps: Count = 2000  # allowed until a settling counts as MAX_STEPS
    shown: Positive = 3.0  # the gain whose traces are drawn
    key: Whole = 0


def check(config: Config) -> None:
    """Raise unless there is a net to draw."""
    if config.shown not in config.gains:
        gains = ", ".join(f"{gain:g}" for gain in config.gains)
        raise ValueError(f"shown must be one of the gains {gains}; got {config.shown:g}. Name one with --shown.")


def measure(config: Config = Config()) -> dict:
    """Per gain and dt: nets whose energy rose at some step, nets within the bound on dt, and how settling ended."""
    rows, traces = [], {}
    for gain in config.gains:
        nets = draw_nets(config, gain)
        for dt in config.dts:
            energy, bound, status = (np.asarray(x) for x in jax.jit(follow(config, gain, dt))(*nets))
            rises = risen(energy)
            row = {"gain": gain, "dt": dt, "rises": int(rises.sum())}
            row["interval"] = wilson(row["rises"], config.seeds)
            within = dt <= bound
            row |= {"within_bound": int(within.sum()), "rises_within_bound": int((rises & within).sum())}
            rows.append(row | {"status": {s.name: int((status == s).sum()) for s in fp.Status if (status == s).any()}})
            if gain == config.shown:
                traces[f"{dt:g}"] = energy[0].tolist()
    return {"seeds": config.seeds, "shown": config.shown, "rows": rows, "traces": traces}


def draw_nets(config: Config, gain: float):
    """Weights, inputs and starts, one of each a seed; the same random numbers at each gain."""
    weights, inputs, starts = jax.random.split(jax.random.key(config.key), 3)
    cell = models.hopfield_cell(config.inputs, config.units, 1, gain=gain)
    params = jax.vmap(cell.init)(jax.random.split(weights, config.seeds))
    z0 = jax.random.uniform(starts, (config.seeds, config.units), minval=-0.9, maxval=0.9)
    return params, jax.random.normal(inputs, (config.seeds, config.inputs)), z0


def follow(config: Config, gain: float, dt: float):
    """(params, x, z0) -> the energy at each step, the bound on dt, and the status of settling; of all seeds."""
    cell = models.hopfield_cell(config.inputs, config.units, 1, gain=gain)
    energy_of = cell.energy
    assert energy_of is not None  # a Hopfield net has one

    def one(params, x, z0):
        step = lambda z: cell.step(params, x, z)
        walk = lambda z, _: (z + jnp.asarray(dt, z.dtype) * (step(z) - z), energy_of(params, x, z))
        energy = lax.scan(walk, z0, length=config.steps)[1]
        bound = 2 / (1 - jnp.linalg.eigvalsh(symmetric(params["w"]))[0])
        ended = fp.solve(step, z0, fp.relaxation(dt), fp.Stop(max_steps=config.max_steps))
        return energy, bound, ended.status

    return jax.vmap(one)


def risen(energy):
    """Which nets' energy rose at some step, by more than rounding."""
    rounding = 64 * np.finfo(energy.dtype).eps * np.abs(energy).max(axis=1)
    return (np.diff(energy, axis=1) > rounding[:, None]).any(axis=1)


def draw(results: dict):
    """Energy along the way in one net; share of nets in which it rose; how Picard ended."""
    figure, ((left, middle, right),) = canvas(1, 3, (13.0, 4.0))
    for i, (dt, energy) in enumerate(results["traces"].items()):
        left.plot(floats(energy[:40]), color=COLOURS[i % 7], label=f"dt = {dt}")
    left.set(xlabel="step", ylabel="E", title=f"one net, gain {results['shown']:g}")
    left.legend(frameon=False)
    gains = list(dict.fromkeys(row["gain"] for row in results["rows"]))
    for i, gain in enumerate(gains):
        rows = [row for row in results["rows"] if row["gain"] == gain]
        share, (low, high) = per_cent(rows, "rises", results), 100 * np.array([row["interval"] for row in rows]).T
        dts, look = [row["dt"] for row in rows], {"color": COLOURS[i % 7], "marker": "osD^vPX"[i % 7]}
        middle.errorbar(dts, share, [share - low, high - share], capsize=3, label=f"gain {gain:g}", **look)
    middle.set(xlabel="dt", ylabel="nets whose energy rose (%)", ylim=(-3, 103), title="energy rose at some step")
    middle.legend(frameon=False)
    endings(right, [row for row in results["rows"] if row["dt"] == max(r["dt"] for r in results["rows"])], results)
    figure.suptitle(f"Continuous Hopfield nets, {results['seeds']} seeds, Wilson's 95 % intervals")
    return figure


def endings(axis, rows, results: dict) -> None:
    """Stacked shares of each status, one bar for each gain."""
    bottom = np.zeros(len(rows))
    for i, name in enumerate(sorted({name for row in rows for name in row["status"]})):
        share = 100 * np.array([row["status"].get(name, 0) for row in rows]) / results["seeds"]
        axis.bar(range(len(rows)), share, bottom=bottom, color=COLOURS[i % 7], label=name)
        bottom += share
    axis.set_xticks(range(len(rows)), [f"{row['gain']:g}" for row in rows])
    axis.set(xlabel="gain = largest |λ(W)|", ylabel="nets (%)", ylim=(0, 102))
    axis.set_title(f"how dt = {rows[0]['dt']:g} ended")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)  # below: bars fill the panel


def per_cent(rows, name: str, results: dict):
    """Counts of nets as shares of the seeds."""
    return 100 * np.array([row[name] for row in rows]) / results["seeds"]
