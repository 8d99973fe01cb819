"""What GEM's two MNIST tables share: 20 tasks of 1000 rows, one pass in batches of ten, 784-100-100-10, SGD.

Lopez-Paz & Ranzato (2017), NeurIPS; rates as in the authors' code.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bptoolkit import continual as cl
from bptoolkit import learning, models
from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.nesting import adding
from bptoolkit.continual.penalty import penalty, pooled
from bptoolkit.continual.streams import Stream
from bptoolkit.continual.views import through_view
from bptoolkit.learning.learner import Learner, Strategy
from bptoolkit.runs.published import Column, Figure, Table
from bptoolkit.types import Key, Memory, Model, Params
from experiments.published.nets import fan_in_uniform, small_net

TASKS, ROWS, BATCH, MEMORY, MARGIN = 20, 1000, 10, 256, 0.5
PER_TASK = (TASKS - 1) / TASKS  # the authors' code divides both transfers by T, where the paper has T − 1
DEVIATIONS = {
    "EWC": (
        "F is the square of the mean gradient on some rows of a task, as in the authors' code, and so no Fisher "
        "information; the rows are any of the task's, where the code takes the first that came",
    ),
    "GEM": ("the rows kept of a task are any of its rows, where the code keeps the last that came",),
}


NOTES = (
    "BWT and FWT are divided by the number of tasks, as the authors' code does.",
    "Multimodal has the architecture of single with an input layer for each task, as the paper says. The authors' code "
    "has a second shared layer, whose biases it draws: with it the accuracy is 0.69 here on both tables (3 seeds each, "
    "by hand, not committed), and so the published figures seem to be of the paper's net.",
)


class Penalised(NamedTuple):
    """How strong EWC is in a table, and on how many rows its importances are taken."""

    strength: float
    rows: int


def experiment(stream: Stream, method: str, rates: Mapping[str, float], ewc: Penalised) -> Experiment:
    """One row of a table."""
    strategies: Mapping[str, Strategy] = {
        "single": cl.naive,
        "EWC": squared_mean_ewc(*ewc),
        "multimodal": own_inputs,
        "GEM": cl.gem(MEMORY, margin=MARGIN),
    }
    # The paper's "same architecture"; the published code has one more layer, see NOTES.
    net = models.mlp(784, 100, 100, 10, init=fan_in_uniform) if method == "multimodal" else small_net()
    learner = strategies[method](learning.backprop(net))
    return Experiment(stream, learner, optax.sgd(rates[method]), steps=ROWS // BATCH, batch=BATCH)


def squared_mean_ewc(strength: float, rows: int) -> Strategy:
    """strength · Σ_t Σ_i F_t,i (θ_i − θ_t,i)², F the square of the mean gradient on so many rows of task t.

    What the authors' strengths are made for.  For a penalty with Fisher information, take `continual.ewc`.
    """

    def consolidate(learner: Learner, memory, params: Params, task, key: Key):
        slope, _, _ = learner.gradient(memory.inner, params, task.rows(jnp.arange(rows, dtype=jnp.int32)), key)
        return pooled(memory, jax.tree.map(jnp.square, slope), params)

    return penalty(strength, consolidate, factor=2.0)


class Kept(NamedTuple):
    """Nothing of its own."""

    inner: Memory


def own_inputs(learner: Learner) -> Learner:
    """An input layer for every task and all other layers shared: the authors' "multimodal".  It is told the task."""
    net = learner.model

    def init(key: Key) -> Params:
        key, own_key = jax.random.split(key)
        drawn = jax.vmap(lambda key: net.init(key)[0])(jax.random.split(own_key, TASKS))
        return (drawn, *net.init(key)[1:])

    def seen(memory: Kept, params: Params, task) -> Params:
        return (jax.tree.map(lambda leaf: leaf[task], params[0]), *params[1:])

    wide = Model(init, lambda params, x: net.apply(seen(Kept(()), params, 0), x))
    keep = adding(learner, lambda inner, params, spec, key: Kept(inner))
    return through_view(keep._replace(model=wide), learner, seen)


def table(
    title: str, published: Mapping[str, tuple[float, float, float]], define, notes: tuple[str, ...] = ()
) -> Table:
    """A table of three columns from one kind of run."""
    return Table(
        title=title,
        reference="Lopez-Paz & Ranzato (2017), NeurIPS: one seed",
        notes=(*NOTES, *notes),
        columns={
            "ACC": Column("domain", cl.average_accuracy),
            "BWT": Column("domain", lambda r: PER_TASK * cl.backward_transfer(r)),
            "FWT": Column("domain", lambda r: PER_TASK * cl.forward_transfer(r, r.untrained)),
        },
        published={
            method: {name: Figure(value, None, "3p") for name, value in zip(("ACC", "BWT", "FWT"), row, strict=True)}
            for method, row in published.items()
        },
        define=define,
        deviations=lambda method, scenario: DEVIATIONS.get(method, ()),
        weight={"single": 1.0, "EWC": 1.2, "multimodal": 3.0, "GEM": 20.0},
        unit=0.01,
    )
