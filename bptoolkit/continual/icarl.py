"""iCaRL: exemplars chosen by herding, old answers distilled into new ones, and the nearest mean of exemplars decides.

    herding        p_k = argmin over rows not yet chosen of ‖μ − (φ(p) + Σ_{j<k} φ(p_j))/k‖,   φ of length one
    training       binary cross-entropy on current rows and exemplars; targets of classes known before: σ(o_old / T)
    answer         argmax_c −‖φ(x) − μ_c‖²,  μ_c the mean of class c's exemplars, of length one again

Reference: Rebuffi, Kolesnikov, Sperl & Lampert (2017), CVPR; T and the lengths as in van de Ven et al. (2022).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bptoolkit.continual.buffers import any_of, as_heavy, counted, held, new_buffer, packed
from bptoolkit.continual.diagnose import class_means, features, nearest, unit
from bptoolkit.continual.nesting import around, require_learner
from bptoolkit.continual.strengths import check_positive, check_whole
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec, Task
from bptoolkit.learning.losses import squared_error
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["herd", "icarl"]

CHUNK = 512  # rows whose features are computed at once
FARTHEST = -8.0  # below −‖φ − μ‖² of any two vectors of length one: the score of a class without exemplars


class Exemplars(NamedTuple):
    """Exemplars of each task, (tasks, places, …), and what was known when the last one ended."""

    inner: Memory
    rows: Batch
    means: Float[Array, "k f"]  # of each class's exemplars
    old_net: Params
    known: Bool[Array, "k"]  # classes of the tasks behind
    current: Bool[Array, "k"]  # and of this one, as far as seen
    tasks: Int[Array, ""]
    seen: Int[Array, ""]  # rows of the tasks behind
    temperature: Float[Array, ""]


def icarl(per_class: int, *, temperature: Float[Array, ""] | float = 2.0) -> Strategy:
    """Incremental classifier and representation learning; for streams where classes are new.

    Write it around a rule that follows the binary cross-entropy, `icarl(100)(backprop(model, binary_cross_entropy))`:
    all that it adds travels in the rows.  Rows of a batch give way to exemplars at the rate of exemplars among
    exemplars and rows of a task, a task being as large as those behind were on average.

    Args:
        per_class: exemplars of each class; all where a class has fewer.
        temperature: T of the old answers, above 0; may be traced.

    Raises:
        ValueError: less than one exemplar, a temperature not above 0, a model without features, a stream whose tasks
            share their outputs.
    """
    check_whole(per_class=per_class)
    check_positive("temperature", temperature)

    def strategy(learner: Learner) -> Learner:
        _check_learner(learner)
        see = jax.vmap(features(learner.model), (None, 0))

        def init(params: Params, spec: StreamSpec, key: Key) -> Exemplars:
            _check_new_classes(spec)
            rows = new_buffer((), spec, spec.classes_per_task * per_class).rows
            size = jax.eval_shape(see, params, rows.x[0]).shape[1]
            real, none = jnp.result_type(float), jnp.zeros(spec.outputs, bool)
            means = jnp.zeros((spec.outputs, size), real)
            inner, number = learner.init(params, spec, key), jnp.int32(0)
            return Exemplars(inner, rows, means, params, none, none, number, number, jnp.asarray(temperature, real))

        def gradient(memory: Exemplars, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Exemplars]:
            inner_key, lot_key = jax.random.split(key)
            current = memory.current | jnp.any((batch.target > 0) & (batch.weight > 0)[:, None], axis=0)
            rows = _among_exemplars(memory, batch, lot_key)
            old, _ = learner.predict(memory.inner, memory.old_net, rows)
            soft = jax.nn.sigmoid(old / memory.temperature.astype(old.dtype)).astype(rows.target.dtype)
            taught = rows._replace(
                target=jnp.where(memory.known, soft, rows.target),
                active=jnp.broadcast_to(memory.known | current, rows.active.shape),
            )
            grads, info, inner = learner.gradient(memory.inner, params, taught, inner_key)
            return grads, info, memory._replace(inner=inner, current=current)

        def end_task(memory: Exemplars, params: Params, task: Task, key: Key) -> tuple[Params, Exemplars]:
            params, inner = learner.end_task(memory.inner, params, task, key)
            chosen = _exemplars(lambda x: see(params, x), task, per_class, memory.rows.weight.shape[1] // per_class)
            rows = jax.tree.map(lambda all, new: all.at[task.number].set(new), memory.rows, packed(chosen))
            flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)
            means, known = class_means(see(params, flat.x), flat)
            return params, memory._replace(
                inner=inner,
                rows=rows,
                means=means.astype(memory.means.dtype),
                old_net=params,
                known=known,
                current=jnp.zeros_like(known),
                tasks=memory.tasks + 1,
                seen=memory.seen + task.count,
            )

        def predict(memory: Exemplars, params: Params, batch: Batch):
            """By nearest mean; by the net where there are no exemplars yet."""
            logits, info = learner.predict(memory.inner, params, batch)
            near = nearest(memory.means.astype(logits.dtype), memory.known, see(params, batch.x))
            near = jnp.maximum(near, FARTHEST).astype(logits.dtype)  # finite, as logits are
            return jnp.where(jnp.any(memory.known), near, logits), info

        outer = around(learner, init=init, gradient=gradient, end_task=end_task, predict=predict)
        return outer._replace(logits=False)

    return strategy


def herd(f: Float[Array, "n f"], member: Bool[Array, "n"], wanted: int) -> tuple[Int[Array, "m"], Bool[Array, "m"]]:
    """Members whose running mean stays nearest to the mean of all, one after the other; False where there are no more.

    μ is the mean of the members' features, scaled to length one.
    """
    mean = jnp.sum(jnp.where(member[:, None], f, 0), axis=0)
    mean = mean / jnp.maximum(jnp.linalg.norm(mean), jnp.finfo(f.dtype).tiny)
    square = jnp.sum(jnp.square(f), axis=1)

    def choose(state, k):
        total, free = state
        distance = square + 2 * f @ (total - k * mean)  # k² ‖(total + f)/k − μ‖², less what is common to all
        chosen = jnp.argmin(jnp.where(free, distance, jnp.inf))
        return (total + f[chosen], free.at[chosen].set(False)), (chosen.astype(jnp.int32), jnp.any(free))

    numbers = jnp.arange(1, wanted + 1, dtype=f.dtype)
    return lax.scan(choose, (jnp.zeros_like(mean), member), numbers)[1]


def _among_exemplars(memory: Exemplars, batch: Batch, key: Key) -> Batch:
    """The batch, some of whose rows have given way to exemplars."""
    lot_key, draw_key = jax.random.split(key)
    stored = jnp.sum(held(memory.rows), dtype=jnp.int32)
    ahead = memory.seen // jnp.maximum(memory.tasks, 1)
    share = stored / jnp.maximum(stored + ahead, 1)
    gives_way = jax.random.uniform(lot_key, batch.weight.shape, batch.weight.dtype) < share.astype(batch.weight.dtype)
    exemplars = as_heavy(any_of(memory.rows, draw_key, len(batch.weight)), batch)
    pick = lambda a, b: jnp.where(gives_way.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, exemplars, batch)


def _exemplars(see, task: Task, per_class: int, classes: int) -> Batch:
    """`per_class` rows of each class of a task, by herding."""
    chunks = -(-task.rows_max // CHUNK)
    place = jnp.arange(chunks * CHUNK, dtype=jnp.int32)
    inside = jnp.minimum(place, task.rows_max - 1)
    found = lax.map(lambda some: unit(see(task.rows(some).x)), inside.reshape(chunks, CHUNK))
    slot = jnp.where(place < task.count, task.slot(inside), -1)
    of_class = lambda c: herd(found.reshape(chunks * CHUNK, -1), slot == c, per_class)
    chosen, there = lax.map(of_class, jnp.arange(classes, dtype=jnp.int32))
    return counted(task.rows(jnp.minimum(chosen.reshape(-1), task.rows_max - 1)), there.reshape(-1))


def _check_learner(learner: Learner) -> None:
    require_learner(learner)
    if learner.view is not None or learner.apart:
        raise ValueError(
            "icarl reads the features of one net, got a learner whose tasks see other weights, as in xdg and separate."
        )
    if learner.loss is squared_error:
        raise ValueError("icarl needs a cross-entropy, best binary_cross_entropy, got a learner of squared_error.")


def _check_new_classes(spec: StreamSpec) -> None:
    if spec.scenario == "domain":
        raise ValueError(
            'icarl needs classes that are new in each task, got a stream whose tasks share their outputs ("domain").\n'
            'Make the stream with scenario="class", or take replay, which serves every scenario.'
        )


EXAMPLES = {"icarl": icarl(2)}
SCENARIOS = {"icarl": ("class", "task")}
