"""An associative memory of ten digits, trained through its fixed point by five routes to the gradient, and its ρ.

    h* = W_fx σ(b x) + W_ff σ(b h*),   W = w + wᵀ without self-connections,   loss = mean |h*_out − x|

Run:    python scripts/study.py associative         (needs MNIST; `BPTOOLKIT_DATA` names the folder that holds it)
Nets:   784 units clamped to the image x, `hidden` free ones, 784 outputs, one σ for all; a net recalls what its outputs
        say above ½.  Trained on ten binary digits, it is asked with half of their on-pixels switched off.
Routes: all settle by Picard for `settle_steps` at most; Almeida–Pineda and the Neumann series make `truncate` steps
        backward at most, "exact" goes to its tolerance, "one step" takes g for λ, and BPTT unrolls every update.
        Where ρ is small they must agree: the figure of ρ says how much the comparison is worth.  The gradient of
        |h − x| jumps where an output passes its pixel: one that ends on the other side is a distance of a per cent.
        At the end most outputs are their pixels but for rounding, and BPTT, whose state is rounded another way, ends at
        a distance of 0.9 from the others, which share one forward relaxation.  The memory is none the worse for it.
Beside: the authors update after each image, for 1000 epochs, with 1024 hidden units and at a constant rate.  Here an
        update sees all ten images and the rate falls to zero along half a cosine: at a constant one the steps, as long
        for a small error as for a large one, keep the loss at a level of their own.
Reference: Liao et al. (2018), ICML, "Reviving and improving recurrent back-propagation", section 5.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bptoolkit import data, learning, models, trees
from bptoolkit import fixed_point as fp
from bptoolkit.fixed_point.sizes import norm
from bptoolkit.fixed_point.stability import symmetric
from bptoolkit.learning.fit import Progress, train
from bptoolkit.models.activations import sigmoid
from bptoolkit.runs.fields import Amount, Count, Share, Whole
from bptoolkit.runs.figures.look import COLOURS
from bptoolkit.types import Batch, Cell, Model
from experiments.studies.canvas import canvas, floats

QUESTION = (
    "Does it matter to an associative memory by which route its gradient comes, and how near to ρ = 1 does it work?"
)


@dataclass(frozen=True)
class Config:
    """Every field is a flag of `scripts/study.py`."""

    hidden: Count = 256
    slope: float = 0.5  # b
    scale: Amount = 1e-3  # deviation of w at the start
    settle_steps: Count = 50
    tolerance: Amount = 1e-5  # relative error at which a relaxation ends, forward and backward
    truncate: Count = 20  # backward steps
    rate: Amount = 1e-3  # of Adam, at the start
    updates: Count = 1000
    looks: Count = 20  # at ρ and at recall, beside the one before the first update
    corrupted: Share = 0.5  # share of on-pixels that is switched off
    draws: Count = 5  # of corrupted pixels, for each image
    seeds: Count = 3
    krylov: Count = 40  # vectors from which ρ is estimated
    key: Whole = 0


def check(config: Config) -> None:
    """Raise unless there are as many updates before each look."""
    if config.updates % config.looks:
        raise ValueError(
            f"updates must be a multiple of the {config.looks} looks, for as many before each; got {config.updates}. "
            f"Take --updates {config.updates + -config.updates % config.looks}, or other --looks."
        )


def measure(config: Config = Config()) -> dict:
    """Per route: at each look the loss, the share of wrong pixels, ρ, and how the relaxations ended; of every seed."""
    images = jnp.asarray(digits(), jnp.result_type(float))
    view = jax.jit(partial(look, config, images))
    rows = []
    for route, relax in routes(config).items():
        model = models.equilibrium(memory(config, images.shape[1]), relax)
        rows.append({"route": route, "curves": learn(config, model, images, view)})
    updates = [look * (config.updates // config.looks) for look in range(config.looks + 1)]
    return {"seeds": config.seeds, "updates": updates, "rows": rows}


def digits() -> np.ndarray:
    """The first training image of each digit, 0 or 1 per pixel."""
    train = data.mnist().train
    first = [int(np.flatnonzero(np.asarray(train.y) == digit)[0]) for digit in range(10)]
    return (np.asarray(train.x)[first] > 0).reshape(10, -1)


def routes(config: Config) -> dict[str, Callable]:
    """What settles the net, and how it is differentiated."""
    forward, backward = (fp.Stop(config.tolerance, max_steps=steps) for steps in (config.settle_steps, config.truncate))
    settled_by = lambda adjoint: fp.implicit(fp.picard(), adjoint, forward)
    return {
        "Almeida–Pineda": settled_by(fp.almeida_pineda(fp.picard(), backward)),
        "exact": settled_by(fp.exact(fp.Stop(config.tolerance))),
        f"Neumann, {config.truncate} terms": settled_by(fp.neumann(config.truncate)),
        "one step": settled_by(fp.one_step()),
        "BPTT": fp.unrolled(config.settle_steps),
    }


def memory(config: Config, pixels: int) -> Cell:
    """The free units; the last ones are the outputs."""
    free = config.hidden + pixels

    def init(key):
        w, u = jax.random.split(key)
        draw = lambda key, shape: config.scale * jax.random.normal(key, shape)
        return {"w": draw(w, (free, free)), "u": draw(u, (pixels, free)) / np.sqrt(2)}

    # w[x, f] and w[f, x] of the paper always move alike: one u stands for both, so that Adam moves W as it does there.
    drive = lambda params, x: 2 * sigmoid(config.slope * x) @ params["u"]
    respond = lambda params, current, h: current + 2 * sigmoid(config.slope * h) @ symmetric(params["w"])
    step = lambda params, x, h: respond(params, drive(params, x), h)
    readout = lambda params, h: h[-pixels:]
    state = jax.ShapeDtypeStruct((free,), jnp.result_type(float))
    return Cell(init, step, readout, state, drive=drive, respond=respond)


def learn(config: Config, model: Model, x, view: Callable) -> dict[str, list]:
    """Train every seed; numbers[seed, look]."""
    batch, optimizer = recalled(x), optax.adam(optax.cosine_decay_schedule(config.rate, config.updates))
    learner = learning.backprop(model, absolute_error)
    gradient = jax.jit(lambda params: loss_and_gradient(model, params, x)[1])

    @jax.jit
    def advance(progress):
        nothing_drawn = jax.random.key(config.key)
        draw = lambda step, key: batch
        return train(learner, optimizer, draw, progress, nothing_drawn, config.updates // config.looks)[0]

    def one(key) -> list[dict]:
        first, tests = jax.random.split(key)
        params = model.init(first)
        progress = Progress(params, optimizer.init(params), ())
        told = [view(params, gradient(params), tests)]
        for _ in range(config.looks):
            progress = advance(progress)
            same = jax.random.clone(tests)  # corrupts the same pixels every time
            told.append(view(progress.params, gradient(progress.params), same))
        return told

    told = [one(key) for key in jax.random.split(jax.random.key(config.key), config.seeds)]
    return {name: [[float(view[name]) for view in seed] for seed in told] for name in told[0][0]}


def recalled(x) -> Batch:
    """Each image as input and as target."""
    n = len(x)
    one, number = jnp.ones(n, x.dtype), jnp.arange(n, dtype=jnp.int32)
    return Batch(x, x, jnp.ones(x.shape, bool), one, one, jnp.zeros_like(number), number)


def absolute_error(outputs, target, active=None, temperature=1.0):
    """L = mean of |t_i − o_i| over the outputs, which are all active here; the temperature plays no part."""
    del active, temperature
    return jnp.mean(jnp.abs(target - outputs))


def look(config: Config, x, params, taken, key) -> dict:
    """Loss and ρ on the images; how corrupted ones are recalled; how far `taken`, a gradient, is from the exact one."""
    reference = models.equilibrium(memory(config, x.shape[1]), routes(config)["exact"])
    queries = jax.vmap(partial(corrupt, config, x))(jax.random.split(key, config.draws))
    outputs, info = jax.vmap(jax.vmap(partial(reference.apply, params)))(queries)
    assert info.forward is not None  # as the model settles
    wrong = (outputs > 0.5) != (x > 0.5)
    loss, exact = loss_and_gradient(reference, params, x)
    return {
        "loss": loss,
        "wrong": jnp.mean(wrong),
        "wrong_in_query": jnp.mean(queries != x),
        "lost": jnp.sum(wrong & (queries != x)) / jnp.sum(queries != x),  # of the pixels that were switched off
        "radius": jnp.max(jax.vmap(partial(radius, config, reference, params))(x)),
        "steps": jnp.mean(info.forward.steps),
        "unconverged": jnp.mean(info.forward.status != fp.Status.CONVERGED),
        "gradient_error": norm(trees.subtract(taken, exact)) / norm(exact),
    }


def corrupt(config: Config, x, key):
    """The images with the given share of their on-pixels switched off, which ones being drawn anew."""
    rank = jnp.argsort(jnp.argsort(jnp.where(x > 0, jax.random.uniform(key, x.shape), 2), axis=1), axis=1)
    count = jnp.floor(config.corrupted * jnp.sum(x, axis=1, keepdims=True)).astype(rank.dtype)
    return jnp.where(rank < count, 0, x)


def loss_and_gradient(model: Model, params, x):
    """Of the mean absolute error over all images, by the model's own route."""
    outputs = lambda params: jax.vmap(partial(model.apply, params))(x)[0]
    return jax.value_and_grad(lambda params: jnp.mean(jnp.abs(outputs(params) - x)))(params)


def radius(config: Config, model: Model, params, image):
    """ρ of ∂f/∂h where the net has settled on one image."""
    cell = model.cell
    assert cell is not None  # as the model settles
    settle = cell.settle
    assert settle is not None
    f = lambda params, h: cell.step(params, image, h)
    return fp.spectral_radius(f, params, settle(params, image).value, size=config.krylov)


def draw(results: dict):
    """Along training: loss, wrong pixels of the answers to corrupted images, ρ, and what the gradients differ by."""
    figure, axes = canvas(2, 2, (11.0, 7.0))
    titles = {
        "loss": "mean |h − x| on the images",
        "wrong": "wrong pixels of the answer (%)",
        "radius": "ρ at the fixed point, worst image",
        "gradient_error": "relative distance from the exact gradient",
    }
    for axis, (name, title) in zip(axes.flat, titles.items(), strict=True):
        for i, row in enumerate(results["rows"]):
            values = floats(row["curves"][name]) * (100 if name == "wrong" else 1)
            look = {"color": COLOURS[i % 7], "marker": "osD^vPX"[i % 7], "markersize": 4, "markevery": (i, 5)}
            axis.plot(results["updates"], np.median(values, axis=0), label=row["route"], **look)
            axis.fill_between(
                results["updates"], values.min(axis=0), values.max(axis=0), color=look["color"], alpha=0.15
            )
        axis.set(xlabel="updates", ylabel=title, ylim=None if name == "gradient_error" else 0)
    axes[1, 0].set_ylim(0, 1)
    axes[1, 1].set(yscale="log", ylim=(1e-8, 2))  # `exact` differs from itself by 0, which is off the scale
    query = 100 * floats(results["rows"][0]["curves"]["wrong_in_query"]).mean()
    axes[0, 1].axhline(query, color="dimgrey", linewidth=0.8)
    axes[0, 1].text(results["updates"][-1], query, "in the question", ha="right", va="bottom", color="dimgrey")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"Associative memory of ten digits: medians and range of {results['seeds']} seeds")
    return figure
