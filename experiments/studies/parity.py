"""XOR and 4-bit parity, full batch: y = x₁ x₂ … x_n with every x_i in ±1, by three kinds of backpropagation.

Run:    python scripts/study.py parity
Nets:   `units` rate units, all connected, which settle by the relaxation dz/dt = −z + tanh(Wz + Ux + b); Almeida–Pineda
        and backpropagation through time train the very same net, and "patterns that fail abandoned" is Almeida–Pineda
        with the PDP software's practice: no gradient from a pattern that does not settle, forward or backward.
        The static net has one hidden layer of tanh units and about as many parameters.
        A net has solved the task when the mean of ½ (y − o)² stays below margin²/(2 · patterns), which leaves every
        single output within `margin` of its target.
Reference: Rumelhart, Hinton & Williams (1986), Nature 323; Pineda (1987), Physical Review Letters 59.
"""

from dataclasses import dataclass
from itertools import product
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bptoolkit import fixed_point as fp
from bptoolkit import learning, models
from bptoolkit.learning.fit import Progress, train
from bptoolkit.runs.fields import Amount, Count, Positive, Range, Some, Whole
from bptoolkit.runs.figures.look import COLOURS
from bptoolkit.runs.proportion import wilson
from bptoolkit.types import Batch, Model
from experiments.studies.canvas import canvas

QUESTION = "How often does a settled net learn parity, by Almeida–Pineda or by BPTT, and a static net of its size?"


@dataclass(frozen=True)
class Config:
    """Every field is a flag of `scripts/study.py`."""

    bits: Some[Count] = (2, 4)
    units: Some[Count] = (3, 6)  # of the recurrent net, one number for each of `bits`
    seeds: Count = 100
    updates: Count = 1000
    rate: Amount = 0.02  # of Adam
    gain: Positive = 0.5  # Lipschitz constant of the recurrent net's step at the start
    dt: Positive = 0.5  # of the relaxation
    settle_steps: Count = 40  # allowed to a relaxation, and unrolled by BPTT
    tolerance: Amount = 1e-4  # relative error at which a relaxation ends
    margin: Annotated[float, Range(above=0, most=1)] = 0.5  # from an output to its target, at most, in a solved task
    key: Whole = 0


def check(config: Config) -> None:
    """Raise unless each parity has its net."""
    if len(config.bits) != len(config.units):
        raise ValueError(
            f"units must be one number for each of the {len(config.bits)} bits, got {len(config.units)}. "
            "Name as many, for example --bits 2 4 --units 3 6."
        )


def measure(config: Config = Config()) -> dict:
    """Rows: solved seeds with their interval, the updates that took, and the seeds whose net settles in the end."""
    rows = [
        {"bits": bits, "method": method, "parameters": models.count_parameters(model)} | attempt(config, bits, model)
        for bits, units in zip(config.bits, config.units, strict=True)
        for method, model in nets(config, bits, units).items()
    ]
    return {"seeds": config.seeds, "updates": config.updates, "rows": rows}


def nets(config: Config, bits: int, units: int) -> dict[str, Model]:
    """One recurrent net with two ways to its gradient, and the static net."""
    stop, euler = fp.Stop(rtol=config.tolerance, max_steps=config.settle_steps), fp.relaxation(config.dt)
    cell = models.rate_cell(bits, units, 1, gain=config.gain)
    static = lambda hidden: models.mlp(bits, hidden, 1, activation=models.activations.tanh)
    implicit = lambda policy: fp.implicit(euler, fp.almeida_pineda(euler, stop), stop, on_failure=policy)
    return {
        "Almeida–Pineda": models.equilibrium(cell, implicit("flag")),
        "patterns that fail abandoned": models.equilibrium(cell, implicit("zero")),
        "BPTT": models.equilibrium(cell, fp.unrolled(config.settle_steps, euler)),
        "static": static(models.matched_units(static, cell)),
    }


def attempt(config: Config, bits: int, model: Model) -> dict:
    """All seeds of one net."""
    batch, optimizer = parity(bits), optax.adam(config.rate)
    learner = learning.backprop(model, learning.squared_error)

    def one(key):
        first, order = jax.random.split(key)
        params = model.init(first)
        start = Progress(params, optimizer.init(params), ())
        end, curves = train(learner, optimizer, lambda step, key: batch, start, order, config.updates)
        return curves.loss, settles(config, model, end.params, batch)

    keys = jax.random.split(jax.random.key(config.key), config.seeds)
    loss, settled = jax.jit(jax.vmap(one))(keys)
    solved_at = [since(below) for below in np.asarray(loss) < config.margin**2 / (2 * len(batch.x))]
    solved = sum(update is not None for update in solved_at)
    return {
        "solved": solved,
        "interval": wilson(solved, config.seeds),
        "solved_at": solved_at,
        "settles": int(settled.sum()) if model.cell else None,
    }


def settles(config: Config, model: Model, params, batch: Batch):
    """Whether a net settles on each of the patterns, if it is given all the time it needs."""
    if model.cell is None:
        return jnp.ones((), bool)
    patient = models.equilibrium(model.cell, fp.implicit(fp.relaxation(config.dt), stop=fp.Stop(rtol=config.tolerance)))
    forward = jax.vmap(lambda x: patient.apply(params, x)[1].forward)(batch.x)
    assert forward is not None  # as the model settles
    return jnp.all(forward.status == fp.Status.CONVERGED)


def since(below) -> int | None:
    """The update from which on the loss was always below the bound; None if it is not at the end."""
    above = np.flatnonzero(~below)
    last = int(above[-1]) + 1 if len(above) else 0
    return last if last < len(below) else None


def parity(bits: int) -> Batch:
    """All patterns of ±1, and their product."""
    x = jnp.array(list(product((-1.0, 1.0), repeat=bits)))
    b, one = len(x), jnp.ones(len(x), x.dtype)
    target = jnp.prod(x, axis=1, keepdims=True)
    number = jnp.arange(b, dtype=jnp.int32)
    return Batch(x, target, jnp.ones((b, 1), bool), one, one, jnp.zeros_like(number), number)


def draw(results: dict):
    """Left: solve rates with 95 % intervals.  Right: the share solved after so many updates."""
    bits = sorted({row["bits"] for row in results["rows"]})
    methods = list(dict.fromkeys(row["method"] for row in results["rows"]))
    figure, ((left, right),) = canvas(1, 2, (9.5, 4.0))
    for row in results["rows"]:
        i, j = methods.index(row["method"]), bits.index(row["bits"])
        rate, (low, high) = 100 * row["solved"] / results["seeds"], 100 * np.array(row["interval"])
        x = j + 0.2 * (i - (len(methods) - 1) / 2)
        left.bar(x, rate, 0.19, color=COLOURS[i])
        left.errorbar(x, rate, [[rate - low], [high - rate]], color="black", capsize=3)
        left.text(x, 3, row["parameters"], ha="center", color="white", fontweight="bold")
        when = np.sort([update for update in row["solved_at"] if update is not None])
        x, y = np.r_[1, when, results["updates"]], np.r_[0, np.arange(1, len(when) + 1), len(when)]
        look = {"color": COLOURS[i], "linestyle": ("--", "-", ":")[j % 3]}
        right.step(x, 100 * y / results["seeds"], where="post", label=f"{row['method']}, {row['bits']} bits", **look)
    left.set(ylabel="solved (% of seeds)", ylim=(0, 102), xlabel="bits (on each bar: number of parameters)")
    left.set_xticks(range(len(bits)), [str(b) for b in bits])
    right.set(ylabel="solved for good (% of seeds)", xlabel="updates", xscale="log", xlim=10, ylim=(0, 102))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=len(bits), frameon=False)
    figure.suptitle(f"Parity, {results['seeds']} seeds, Wilson's 95 % intervals")
    return figure
