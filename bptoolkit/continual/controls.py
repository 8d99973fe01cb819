"""What every remedy is held against: doing nothing, training on all tasks at once, and keeping tasks apart."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bptoolkit import trees
from bptoolkit.continual.nesting import (
    adding,
    around,
    require_kept,
    require_learner,
    require_mixable,
    require_own_rows,
    require_steps,
)
from bptoolkit.continual.readout import readout
from bptoolkit.continual.streams import Stream
from bptoolkit.continual.views import by_task, choose_rows, require_told
from bptoolkit.learning.learner import OWN_ROWS, Curriculum, Learner, StreamSpec, Task
from bptoolkit.models import mlp
from bptoolkit.types import Batch, Key, Memory, Model, Params, PyTree

__all__ = ["cumulative", "joint", "naive", "random_features", "separate", "shallow"]


def naive(learner: Learner) -> Learner:
    """Train on one task after the other and hope: the lower bound.  The identity."""
    require_learner(learner)
    return learner


def joint(learner: Learner) -> Learner:
    """At stage k train a new net on tasks 1 … k together, for k times the steps: the upper bound.

    Row k of its accuracies belongs to a net of its own, as `metrics.intransigence` asks; the last row is the usual
    "joint" figure.  With T tasks it costs (T + 1)/2 times what `naive` does.

    Raises:
        ValueError: a strategy inside that isolates tasks, or that goes by what earlier tasks left, as penalties and
            rehearsal do: nothing is left to a new net.  Around it these are refused as well.
    """
    require_mixable(learner, "joint")
    require_kept(learner, "joint")
    together = Curriculum(sources=lambda tasks, k: tasks <= k, rounds=lambda k: k + 1, fresh=True)
    return learner._replace(curriculum=together)


def cumulative(learner: Learner) -> Learner:
    """At stage k train the same net on from where it is, on tasks 1 … k together, for k times the steps.

    All rows are kept, so nothing is saved but the start: where it stays below `joint`, what was learned first is in
    the way (Ash & Adams 2020, NeurIPS, "On warm-starting").  It costs what `joint` does.

    Raises:
        ValueError: a strategy inside that isolates tasks; gdumb, which trains a new net by itself.
    """
    require_mixable(learner, "cumulative")
    require_steps(learner)
    return learner._replace(curriculum=Curriculum(sources=lambda tasks, k: tasks <= k, rounds=lambda k: k + 1))


def shallow(stream: Stream) -> Model:
    """A model without hidden units, softmax regression, of the sizes of a stream: what a representation adds to.

    Use it in place of the net: `naive(backprop(shallow(stream)))`.
    """
    return mlp(math.prod(stream.data.train.x.shape[1:]), stream.outputs)


class Frozen(NamedTuple):
    """Which weights are trained."""

    inner: Memory
    trained: Params


def random_features(learner: Learner) -> Learner:
    """Train the readout alone; all other weights stay as they were drawn, bit for bit.

    What is then forgotten is forgotten by the readout: the representation cannot be at fault.
    """

    def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Frozen:
        return Frozen(inner, readout(learner.model, params, key))

    return adding(learner, init, free=lambda memory, params: memory.trained, looks_on=False)


NOTHING_LEFT = (
    "{0} gives every task a net of its own, so a strategy inside that goes by what earlier tasks left (a penalty, "
    "rehearsal, distillation) would do nothing.\nWrite {0}(rule)."
)


class Nets(NamedTuple):
    """One net a task, and which of them is being trained."""

    inner: Memory
    nets: tuple[Params, Memory]  # (tasks, …); of tasks to come, as they start
    current: Int[Array, ""]


def separate(learner: Learner) -> Learner:
    """A net of its own for every task, trained on that task alone; the net is told the task, and answers with its own.

    The reference for what sharing costs or gains.  T nets are kept: for equal numbers of weights, make each smaller.
    Every stage starts with a fresh optimiser state and a fresh memory of the learner inside.  Rows of other tasks that
    a strategy around mixes in have no weight; a penalty around it pulls the net of one task towards that of another.

    Raises:
        ValueError: a stream that does not tell the task at test time; a learner that trains on several tasks at once,
            or goes by what earlier tasks left, as penalties and rehearsal do: nothing is left to a net of its own.
    """
    require_own_rows(learner, "separate")
    require_kept(learner, "separate", NOTHING_LEFT)

    def init(params: Params, spec: StreamSpec, key: Key) -> Nets:
        require_told(spec, "separate")
        nets_key, inner_key = jax.random.split(key)
        drawn = jax.vmap(learner.model.init)(jax.random.split(nets_key, spec.tasks))
        nets = jax.tree.map(lambda all, first: all.at[0].set(first), drawn, params)
        memories = jax.vmap(lambda net: learner.init(net, spec, inner_key))(nets)
        return Nets(_at(memories, jnp.int32(0)), (nets, memories), jnp.int32(0))

    def gradient(memory: Nets, params: Params, batch: Batch, key: Key):
        own = batch._replace(weight=jnp.where(batch.task == memory.current, batch.weight, 0))
        return _with_inner(memory, learner.gradient, params, own, key)

    def start_task(memory: Nets, params: Params, task: Int[Array, ""], key: Key) -> tuple[Params, Nets]:
        own, inner = _at(memory.nets, task)
        params, inner = learner.start_task(inner, own, task, key)
        return params, memory._replace(inner=inner, current=task)

    def end_task(memory: Nets, params: Params, task: Task, key: Key) -> tuple[Params, Nets]:
        params, inner = learner.end_task(memory.inner, params, task, key)
        nets = jax.tree.map(lambda all, new: all.at[task.number].set(new), memory.nets, (params, inner))
        return params, memory._replace(inner=inner, nets=nets)

    def predict(memory: Nets, params: Params, batch: Batch):
        def answer(task: Int[Array, ""], so_far):
            own = trees.choose(task == memory.current, (params, memory.inner), _at(memory.nets, task))
            return choose_rows(batch.task == task, learner.predict(own[1], own[0], batch), so_far)

        start = jax.eval_shape(learner.predict, memory.inner, params, batch)
        return by_task(answer, trees.zeros_like(start), batch)

    return around(
        learner,
        init=init,
        gradient=gradient,
        after_step=lambda memory, *step: _with_inner(memory, learner.after_step, *step),
        start_task=start_task,
        end_task=end_task,
        predict=predict,
    )._replace(curriculum=OWN_ROWS._replace(reset_optimizer=True), alone=True, apart=True)


def _with_inner(memory: Nets, function, *arguments):
    """A call of the learner inside, whose last result is its memory."""
    *results, inner = function(memory.inner, *arguments)
    return *results, memory._replace(inner=inner)


def _at(nets: PyTree, task: Int[Array, ""]) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[task], nets)


EXAMPLES = {
    "naive": naive,
    "joint": joint,
    "cumulative": cumulative,
    "random features": random_features,
    "separate": separate,
}
SCENARIOS = {"separate": ("task",)}  # where it works, if not everywhere
