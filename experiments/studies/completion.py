"""Pattern completion: one half of a random pattern p ∈ {±1}^N is clamped, with some bits wrong; the other is recalled.

    x = clamped ⊙ p,  z* = tanh(Wz* + Ux + b),  o = Vz* + c,      recall = share of missing bits with sign(o_i) = p_i

Run:    python scripts/study.py completion
Nets:   `hidden` units with symmetric W between N clamped inputs and N outputs, so that the relaxation has an energy and
        settles (--no-symmetric lifts that), trained by Almeida–Pineda on the squared error of the missing half alone:
        each pattern is two examples, one for either half.  Bits of the clamped half flip anew at each update, with the
        probability `training_noise`.
Beside: "nearest" looks up the stored half with the fewest wrong bits: the best guess there is, with equal patterns.
Reference: Almeida (1987), IEEE ICNN, section on associative memory; Pineda (1987), Physical Review Letters 59.
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
from bptoolkit.runs.fields import Amount, Count, Positive, Share, Some, Whole
from bptoolkit.runs.figures.look import COLOURS
from bptoolkit.runs.summary import interval
from bptoolkit.types import Batch, Model
from experiments.studies.canvas import canvas, floats

QUESTION = "How much of a pattern does a settled net recall from one half, against wrong bits and number of patterns?"


@dataclass(frozen=True)
class Config:
    """Every field is a flag of `scripts/study.py`."""

    bits: Count = 32  # N, even
    hidden: Count = 64
    symmetric: bool = True  # W = Wᵀ without self-connections
    patterns: Some[Count] = (8, 16, 32, 64)
    noises: Some[Share] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # probability that a clamped bit is wrong
    training_noise: Share = 0.1
    seeds: Count = 5
    updates: Count = 600
    rate: Amount = 3e-3  # of Adam
    clip: Positive = 0.1  # largest norm of a gradient: it is infinite where a fixed point is about to vanish
    gain: Positive = 0.5  # Lipschitz constant of the step at the start
    dt: Positive = 0.5  # of the relaxation
    tolerance: Amount = 1e-3  # relative error at which a relaxation ends
    settle_steps: Count = 200  # allowed to it
    draws: Count = 20  # of wrong bits, for each pattern and noise
    key: Whole = 0


def check(config: Config) -> None:
    """Raise unless a pattern has two halves."""
    if config.bits % 2:
        raise ValueError(f"bits must be even, for a pattern to have two halves; got {config.bits}. Add or drop one.")


def measure(config: Config = Config()) -> dict:
    """Rows of {patterns, noise, recall, whole, nearest, unconverged}: means over seeds, with half-widths at 95 %."""
    rows = [row for patterns in config.patterns for row in one_load(config, patterns)]
    return {"seeds": config.seeds, "rows": rows}


def one_load(config: Config, patterns: int) -> list[dict]:
    """A net for each seed, trained on so many patterns, and what it recalls at each noise."""
    model = net(config)

    def one(key):
        for_patterns, for_training, for_tests = jax.random.split(key, 3)
        stored = jax.random.rademacher(for_patterns, (patterns, config.bits), jnp.result_type(float))
        params, failed = learn(config, model, stored, for_training)
        keys = jax.random.split(for_tests, (len(config.noises), config.draws))
        test = jax.vmap(jax.vmap(partial(recall, model, params, stored), (None, 0)))
        return test(jnp.array(config.noises), keys), failed

    keys = jax.random.split(jax.random.key(config.key), config.seeds)
    shares, failed = jax.jit(jax.vmap(one))(keys)
    shares = {name: np.asarray(values).mean(axis=2) for name, values in shares.items()}  # (seed, noise)
    return [
        {"patterns": patterns, "noise": noise}
        | {name: interval(values[:, i]) for name, values in shares.items()}
        | {"unconverged_in_training": float(np.mean(failed))}
        for i, noise in enumerate(config.noises)
    ]


def net(config: Config) -> Model:
    """Clamped bits in, all bits out, a settled net between them."""
    stop = fp.Stop(rtol=config.tolerance, max_steps=config.settle_steps)
    make = models.hopfield_cell if config.symmetric else models.rate_cell
    cell, euler = make(config.bits, config.hidden, config.bits, gain=config.gain), fp.relaxation(config.dt)
    return models.equilibrium(cell, fp.implicit(euler, fp.almeida_pineda(euler, stop), stop))


def learn(config: Config, model: Model, stored, key):
    """Full batches of both halves of all patterns; the weights, and the share of settlings that failed."""
    learner = learning.backprop(model, learning.squared_error)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(config.rate))
    first, order = jax.random.split(key)
    params = model.init(first)
    draw = lambda step, key: halves(stored, config.training_noise, jax.random.fold_in(key, step))
    start = Progress(params, optimizer.init(params), ())
    end, curves = train(learner, optimizer, draw, start, order, config.updates)
    return end.params, jnp.mean(curves.unconverged)


def halves(stored, noise, key) -> Batch:
    """Two examples of each pattern: the first half clamped and the second missing, and the other way round."""
    patterns, bits = stored.shape
    target = jnp.concatenate([stored, stored])
    first = jnp.arange(bits, dtype=jnp.int32) < bits // 2
    clamped = jnp.repeat(jnp.stack([first, ~first]), patterns, axis=0)
    wrong = jax.random.bernoulli(key, noise, target.shape)
    x = jnp.where(clamped, jnp.where(wrong, -target, target), 0)
    number = jnp.arange(2 * patterns, dtype=jnp.int32)
    one = jnp.ones(2 * patterns, x.dtype)
    return Batch(x, target, ~clamped, one, one, jnp.zeros_like(number), number)


def recall(model: Model, params, stored, noise, key) -> dict:
    """Shares of missing bits that are right, of halves wholly right, of bits that the nearest pattern gets right."""
    batch = halves(stored, noise, key)
    outputs, info = jax.vmap(partial(model.apply, params))(batch.x)
    assert info.forward is not None  # as the model settles
    right = (jnp.sign(outputs) == batch.target) | ~batch.active
    missing = lambda right: jnp.mean(jnp.sum(right & batch.active, axis=1) / (batch.x.shape[1] // 2))
    nearest = stored[jnp.argmax(batch.x @ stored.T, axis=1)] == batch.target
    unsettled = jnp.mean(jnp.where(info.forward.status == fp.Status.CONVERGED, 0.0, 1.0))
    whole = jnp.mean(jnp.where(jnp.all(right, axis=1), 1.0, 0.0))
    return {"recall": missing(right), "whole": whole, "nearest": missing(nearest), "unconverged": unsettled}


def draw(results: dict):
    """Bits right (left) and halves wholly right (right) against the share of wrong clamped bits."""
    figure, ((left, right),) = canvas(1, 2, (10.0, 4.0))
    for i, patterns in enumerate(dict.fromkeys(row["patterns"] for row in results["rows"])):
        rows = [row for row in results["rows"] if row["patterns"] == patterns]
        noise, look = [100 * row["noise"] for row in rows], {"color": COLOURS[i % 7], "marker": "osD^vPX"[i % 7]}
        for axis, name in ((left, "recall"), (right, "whole")):
            mean, half = 100 * floats([row[name] for row in rows]).T
            axis.errorbar(noise, mean, half, capsize=3, markersize=4, label=f"{patterns} patterns", **look)
        left.plot(noise, 100 * floats([row["nearest"][0] for row in rows]), ":", color=COLOURS[i % 7])
    left.axhline(50, color="dimgrey", linewidth=0.8)
    left.set(xlabel="wrong bits of the clamped half (%)", ylabel="missing bits recalled (%)", ylim=(45, 102))
    left.set_title("dotted: nearest stored half; grey: chance")
    right.set(xlabel="wrong bits of the clamped half (%)", ylabel="missing halves without an error (%)", ylim=(-2, 102))
    right.legend(frameon=False)
    figure.suptitle(f"Completion of random patterns, {results['seeds']} seeds, 95 % t-intervals")
    return figure
