"""Strategies that keep rows of earlier tasks and train on them again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bptoolkit.learning.learner import Learner, StreamSpec, Task
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["replay"]


class Buffer(NamedTuple):
    """Stored rows, (tasks, places, …); weight 0 where nothing is stored."""

    inner: Memory
    rows: Batch
    tasks: Int[Array, ""]  # stored so far


def replay(per_class: int, rows: int | None = None):
    """Experience replay: after each task keep `per_class` random rows of each of its classes, and mix them in.

    With k − 1 tasks behind, the loss is 1/k of the current batch and 1 − 1/k of the replayed rows, all mixed into one
    batch, so replay works with every rule and every model.

    Args:
        per_class: rows kept of each class of a task; all where a class has fewer.
        rows: replayed rows a step; as many as the batch has if left out.

    Raises:
        ValueError: less than one row.

    Reference: Chaudhry et al. (2019), arXiv:1902.10486; weights of van de Ven, Tuytelaars & Tolias (2022).
    """
    for name, value in (("per_class", per_class), ("rows", 1 if rows is None else rows)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")

    def strategy(learner: Learner) -> Learner:
        def init(params: Params, spec: StreamSpec, key: Key) -> Buffer:
            size = (spec.tasks, spec.classes_per_task * per_class)
            empty = jax.tree.map(lambda leaf: jnp.zeros((*size, *leaf.shape), leaf.dtype), spec.example)
            blank = empty._replace(temperature=jnp.ones_like(empty.temperature))
            return Buffer(learner.init(params, spec, key), blank, jnp.int32(0))

        def gradient(memory: Buffer, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Buffer]:
            inner_key, draw_key = jax.random.split(key)
            stored = _draw(memory, draw_key, batch.x.shape[0] if rows is None else rows)
            share = 1 / (memory.tasks + 1).astype(batch.weight.dtype)
            mixed = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), _weigh(batch, share), _weigh(stored, 1 - share))
            grads, info, inner = learner.gradient(memory.inner, params, mixed, inner_key)
            return grads, info, memory._replace(inner=inner)

        def after_step(memory: Buffer, before, after, opt_state, batch, key):
            params, opt_state, inner = learner.after_step(memory.inner, before, after, opt_state, batch, key)
            return params, opt_state, memory._replace(inner=inner)

        def end_task(memory: Buffer, params: Params, task: Task, key: Key) -> tuple[Params, Buffer]:
            inner_key, choice_key = jax.random.split(key)
            params, inner = learner.end_task(memory.inner, params, task, inner_key)
            kept = _choose(task, per_class, memory.rows.weight.shape[1] // per_class, choice_key)
            stored = jax.tree.map(lambda all, new: all.at[task.number].set(new), memory.rows, kept)
            return params, Buffer(inner, stored, memory.tasks + 1)

        return learner._replace(
            init=init,
            gradient=gradient,
            after_step=after_step,
            end_task=end_task,
            predict=lambda memory, params, batch: learner.predict(memory.inner, params, batch),
        )

    return strategy


def _draw(memory: Buffer, key: Key, rows: int) -> Batch:
    """Rows drawn with replacement from what is stored of the tasks so far; weight 0 before the first is."""
    places = memory.rows.weight.shape[1]
    drawn = jax.random.randint(key, (rows,), 0, jnp.maximum(memory.tasks, 1) * places, jnp.int32)
    return jax.tree.map(lambda leaf: leaf[drawn // places, drawn % places], memory.rows)


def _weigh(batch: Batch, share: Array) -> Batch:
    """The same rows with weights that sum to `share`."""
    total = jnp.sum(batch.weight)
    return batch._replace(weight=batch.weight * share / jnp.where(total > 0, total, 1))


def _choose(task: Task, per_class: int, classes: int, key: Key) -> Batch:
    """`per_class` random rows of each class of a task, without replacement; weight 0 where a class has too few."""
    place = jnp.arange(task.rows_max, dtype=jnp.int32)
    slot = jnp.where(place < task.count, task.slot(place), -1)
    luck = jax.random.uniform(key, (task.rows_max,))

    def of_class(c):
        score, chosen = jax.lax.top_k(jnp.where(slot == c, luck, -1), min(per_class, task.rows_max))
        short = per_class - score.shape[0]
        return jnp.pad(chosen, (0, short)), jnp.pad(score, (0, short), constant_values=-1) >= 0

    chosen, stored = jax.vmap(of_class)(jnp.arange(classes, dtype=jnp.int32))
    rows = task.rows(chosen.reshape(-1))
    return rows._replace(weight=stored.reshape(-1).astype(rows.weight.dtype))
