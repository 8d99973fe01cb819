"""Gradient descent on XOR at many learning rates, and max Re λ(DW) of the settled net along the way.

    J = DW with D = diag g′(u):    dz/dt = −z + g(u), and with it the adjoint, is stable iff  max Re λ < 1
                                   its Euler steps of length dt settle               iff  max |1 − dt (1 − λ)| < 1

Run:    python scripts/study.py learning_rate
Nets:   `units` rate units trained by Almeida–Pineda, and a static net with about as many parameters, as in `parity`.
        The loss is the cross entropy of two outputs, whose errors stay bounded, so that it is not the readout that
        sets the limit.  A mean loss below log 2 / patterns leaves every pattern right: solved.
        A seed has the same first weights at each rate.
Looks:  before the first update, and then after equal numbers of them, the net is settled anew on each pattern.  A net
        settles only where it is stable, so the fixed point is then followed by Newton's method, which finds it also
        where it has become unstable; there the eigenvalues are taken, and the worst of the patterns counts.
Reference: Simard, Ottaway & Ballard (1989), "Fixed point analysis for recurrent networks", NIPS 1: static
        backpropagation tolerates larger rates, and with a small enough one the recurrent net does not fail.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bptoolkit import fixed_point as fp
from bptoolkit import learning, models
from bptoolkit.learning.fit import Progress, train
from bptoolkit.runs.fields import Amount, Count, Positive, Some, Whole
from bptoolkit.runs.figures.look import COLOURS
from bptoolkit.runs.proportion import wilson
from bptoolkit.types import Batch, Model
from experiments.studies.canvas import canvas
from experiments.studies.parity import parity

QUESTION = "Which learning rates does a recurrent net bear, and does it lose its stability where it fails?"
LOST = (
    ("unstable", "--", "recurrent: unstable"),
    ("unsettled", ":", "recurrent: unsettled"),
    ("not_found", "-.", "recurrent: a fixed point not found"),
)


@dataclass(frozen=True)
class Config:
    """Every field is a flag of `scripts/study.py`."""

    bits: Count = 2
    units: Count = 4  # of the recurrent net
    rates: Some[Positive] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of plain gradient descent
    seeds: Count = 30
    looks: Count = 30  # at the eigenvalues, beside the one before the first update
    updates: Count = 50  # between two looks
    gain: Positive = 0.5  # Lipschitz constant of the step at the start
    dt: Positive = 0.5  # of the relaxation
    settle_steps: Count = 400  # allowed to a relaxation
    tolerance: Amount = 1e-3  # relative error at which it ends
    key: Whole = 0


def measure(config: Config = Config()) -> dict:
    """Per net and rate: seeds that solve the task, that were unstable or unsettled at a look, and the trace."""
    rows = []
    for net, model in nets(config).items():
        losses, jacobians, settled = walk(config, model)
        values = None if jacobians is None else eigenvalues(jacobians)
        for i, rate in enumerate(config.rates):
            solved = int(np.sum(losses[-1, i] < np.log(2) / 2**config.bits))  # a NaN is not below
            row = {"net": net, "rate": rate, "solved": solved, "interval": wilson(solved, config.seeds)}
            rows.append(
                row | ({} if values is None or settled is None else stability(config.dt, values[:, i], settled[:, i]))
            )
    updates = [look * config.updates for look in range(config.looks + 1)]
    return {"seeds": config.seeds, "updates": updates, "rows": rows}


def nets(config: Config) -> dict[str, Model]:
    """The recurrent net, and the static one of its size."""
    stop, euler = fp.Stop(rtol=config.tolerance, max_steps=config.settle_steps), fp.relaxation(config.dt)
    cell = models.rate_cell(config.bits, config.units, 2, gain=config.gain)
    static = lambda hidden: models.mlp(config.bits, hidden, 2, activation=models.activations.tanh)
    return {
        "recurrent": models.equilibrium(cell, fp.implicit(euler, fp.almeida_pineda(euler, stop), stop)),
        "static": static(models.matched_units(static, cell)),
    }


def walk(config: Config, model: Model):
    """Train at all rates and seeds: losses[look, rate, seed], Jacobians and settled[look, rate, seed, pattern]."""
    batch = classes(config.bits)
    learner = learning.backprop(model)

    @jax.jit
    @jax.vmap
    @partial(jax.vmap, in_axes=(None, 0))
    def advance(rate, progress):
        nothing_drawn = jax.random.key(config.key)
        draw = lambda step, key: batch
        end, curves = train(learner, optax.sgd(rate), draw, progress, nothing_drawn, config.updates)
        return end, curves.loss[-1], look(model, end.params, batch.x)

    params = jax.vmap(model.init)(jax.random.split(jax.random.key(config.key), config.seeds))
    rates = jnp.array(config.rates)
    begun = lambda rate: jax.vmap(lambda p: Progress(p, optax.sgd(rate).init(p), ()))(params)
    progress = jax.vmap(begun)(rates)
    views = [jax.vmap(jax.vmap(lambda progress: look(model, progress.params, batch.x)))(progress)]
    losses = []
    for _ in range(config.looks):
        progress, loss, view = advance(rates, progress)
        views, losses = [*views, view], [*losses, loss]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *views)
    return np.stack(losses), *((None, None) if stacked is None else stacked)


def classes(bits: int) -> Batch:
    """The patterns of parity with one output for each answer."""
    batch = parity(bits)
    target = jnp.concatenate([1 - batch.target, 1 + batch.target], axis=1) / 2
    return batch._replace(target=target, active=jnp.ones(target.shape, bool))


def look(model: Model, params, x):
    """∂f/∂z at the fixed point of each pattern, NaN where none was found, and whether the net settles."""
    cell = model.cell
    if cell is None or cell.settle is None:
        return None
    step_of, settle = cell.step, cell.settle

    def one(x):
        step = lambda z: step_of(params, x, z)
        end = settle(params, x)
        found = fp.solve(step, end.value, fp.newton_krylov(), fp.Stop(max_steps=30))
        jacobian = jnp.where(found.status == fp.Status.CONVERGED, jax.jacfwd(step)(found.value), jnp.nan)
        return jacobian, end.status == fp.Status.CONVERGED

    return jax.vmap(one)(x)


def eigenvalues(jacobians):
    """Of all patterns of each [look, rate, seed]; NaN where no fixed point was found."""
    found = np.isfinite(jacobians).all(axis=(-2, -1))[..., None]
    values = np.where(found, np.linalg.eigvals(np.where(found[..., None], jacobians, 0)), np.nan)
    return values.reshape(*values.shape[:3], -1)


def stability(dt: float, values, settled) -> dict:
    """Of the nets at one rate: how many were unstable or unsettled at some look, and quantiles of both measures."""
    known = np.where(np.isnan(values), -np.inf, values.real)
    abscissa = known.max(axis=-1)  # of the patterns whose fixed point was found; −∞ where none was
    growth = np.nan_to_num(np.abs(1 - dt * (1 - values)), nan=-np.inf).max(axis=-1)
    ever = lambda lost: int(lost.any(axis=0).sum())
    return {
        "unstable": ever(abscissa >= 1),
        "step_too_long": ever((growth >= 1) & (abscissa < 1)),
        "unsettled": ever(~settled.all(axis=-1)),
        "settled_at_end": int(settled[-1].all(axis=-1).sum()),
        "not_found": ever(np.isnan(values).any(axis=-1)),  # of these the other counts say less than all
        "abscissa": quantiles(abscissa),
        "growth": quantiles(growth),
    }


def quantiles(values) -> dict[str, list[float]]:
    """Over the seeds, at each look; cut off at ± a thousand."""
    rows = np.quantile(np.clip(values, -1e3, 1e3), (0.1, 0.5, 0.9), axis=1)
    return {name: row.tolist() for name, row in zip(("low", "median", "high"), rows, strict=True)}


def draw(results: dict):
    """What share of seeds solves the task at each rate, and loses its settling; then both measures along training."""
    figure, ((left, middle, right),) = canvas(1, 3, (13.0, 4.8))
    share = lambda rows, name: 100 * np.array([row[name] for row in rows]) / results["seeds"]
    for i, net in enumerate(dict.fromkeys(row["net"] for row in results["rows"])):
        rows = [row for row in results["rows"] if row["net"] == net]
        rates, solved = [row["rate"] for row in rows], share(rows, "solved")
        low, high = 100 * np.array([row["interval"] for row in rows]).T
        bars = [solved - low, high - solved]
        left.errorbar(rates, solved, bars, color=COLOURS[i], marker="os"[i % 2], capsize=3, label=f"{net}: solved")
        if "unsettled" in rows[0]:
            for name, line, label in LOST:
                left.plot(rates, share(rows, name), line, color="black", label=label)
            trace(middle, results["updates"], rows, "abscissa")
            trace(right, results["updates"], rows, "growth")
    left.set(xscale="log", xlabel="learning rate", ylabel="share of seeds (%)", ylim=(-3, 103))
    middle.set(ylabel="max Re λ(DW)", ylim=(-0.05, 1.1), title="unstable from 1 on")
    right.set(ylabel="max |1 − dt (1 − λ)|", ylim=(0.45, 1.1), title="Euler's steps too long from 1 on")
    for axis in (left, middle):
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    figure.suptitle(
        f"Gradient descent on parity, {results['seeds']} seeds: Wilson's 95 % intervals; "
        "medians (solid) and 90th percentiles (dotted)"
    )
    return figure


def trace(axis, updates, rows, name: str) -> None:
    """One measure along training: the median of the seeds at each rate, and the tenth of them that is nearest to 1."""
    for i, row in enumerate(rows):
        style = {"color": COLOURS[i % 7], "zorder": 3 - 0.1 * i, "linewidth": 1.2 + 0.3 * i}  # large rates coincide
        axis.plot(updates, row[name]["median"], label=f"rate {row['rate']:g}", **style)
        axis.plot(updates, row[name]["high"], ":", **style)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(xlabel="updates")
