"""Strategies that keep rows of earlier tasks and train on them again."""

from typing import NamedTuple

import jax

from bptoolkit.continual.buffers import (
    Buffer,
    Reservoir,
    add,
    as_heavy,
    check_room,
    concatenate,
    draw,
    draw_in_epochs,
    keep,
    new_buffer,
    new_reservoir,
    of_each_class,
    some,
    weigh,
)
from bptoolkit.continual.nesting import around
from bptoolkit.continual.strengths import check_whole
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec, Task
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["replay", "reservoir_replay"]


def replay(per_class: int, rows: int | None = None, *, epochs: bool = False, per_task: bool = False) -> Strategy:
    """Experience replay: after each task keep `per_class` random rows of each of its classes, and mix them in.

    With k − 1 tasks behind, the loss is 1/k of the current batch and 1 − 1/k of the replayed rows, all mixed into one
    batch, so replay works with every rule and every model.

    Args:
        per_class: rows kept of each class of a task; all where a class has fewer.
        rows: replayed rows a step; as many as the batch has if left out.
        epochs: go through the stored rows in epochs, as the protocol of van de Ven et al. does; else each row is drawn
            independently.
        per_task: ⌈rows/(k − 1)⌉ rows of each task behind, in epochs of its own, as that protocol does where it is told
            the task.  Needs `epochs`.

    Raises:
        ValueError: less than one row; `per_task` without `epochs`.

    Reference: Chaudhry et al. (2019), arXiv:1902.10486; weights of van de Ven, Tuytelaars & Tolias (2022).
    """
    check_whole(per_class=per_class, rows=rows)
    stored = stored_rows(epochs, per_task)

    def strategy(learner: Learner) -> Learner:
        def gradient(memory: Buffer, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Buffer]:
            inner_key, draw_key = jax.random.split(key)
            again = stored(memory, draw_key, batch.x.shape[0] if rows is None else rows)
            share = 1 / (memory.tasks + 1).astype(batch.weight.dtype)
            mixed = concatenate(weigh(batch, share), weigh(again, 1 - share))
            grads, info, inner = learner.gradient(memory.inner, params, mixed, inner_key)
            return grads, info, memory._replace(inner=inner, step=memory.step + 1)

        return remembering(learner, per_class, gradient)

    return strategy


class Streamed(NamedTuple):
    """A reservoir beside the memory of the learner inside."""

    inner: Memory
    kept: Reservoir


def reservoir_replay(capacity: int, rows: int | None = None) -> Strategy:
    """Experience replay without tasks: a reservoir of all rows that came by, some of which are added to each batch.

    The loss is the plain mean over current and replayed rows; where a strategy around has weighed the current ones, a
    replayed row weighs as much as they do on average.  No task boundary is used.

    Args:
        capacity: rows kept; at least one per class of the stream, and per output.
        rows: replayed rows a step; as many as the batch has if left out.

    Raises:
        ValueError: less than one row; fewer than there are classes.

    Reference: Riemer et al. (2019), ICLR; Chaudhry et al. (2019), arXiv:1902.10486.
    """
    check_whole(capacity=capacity, rows=rows)

    def strategy(learner: Learner) -> Learner:
        def init(params: Params, spec: StreamSpec, key: Key) -> Streamed:
            check_room("capacity", capacity, max(spec.classes, spec.outputs))
            return Streamed(learner.init(params, spec, key), new_reservoir(spec, capacity))

        def gradient(memory: Streamed, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Streamed]:
            inner_key, draw_key = jax.random.split(key)
            again, _ = some(memory.kept, draw_key, batch.x.shape[0] if rows is None else rows)
            mixed = concatenate(batch, as_heavy(again, batch))
            grads, info, inner = learner.gradient(memory.inner, params, mixed, inner_key)
            return grads, info, memory._replace(inner=inner)

        def after_step(memory: Streamed, before, after, opt_state, batch, key):
            inner_key, lot_key = jax.random.split(key)
            params, opt_state, inner = learner.after_step(memory.inner, before, after, opt_state, batch, inner_key)
            return params, opt_state, Streamed(inner, add(memory.kept, batch, lot_key))

        return around(learner, init=init, gradient=gradient, after_step=after_step)

    return strategy


def remembering(learner: Learner, per_class: int, gradient) -> Learner:
    """The learner with this gradient, and `per_class` rows of each class kept in a `Buffer` when a task ends."""

    def init(params: Params, spec: StreamSpec, key: Key) -> Buffer:
        return new_buffer(learner.init(params, spec, key), spec, spec.classes_per_task * per_class)

    def end_task(memory: Buffer, params: Params, task: Task, key: Key) -> tuple[Params, Buffer]:
        inner_key, choice_key, salt_key = jax.random.split(key, 3)
        params, inner = learner.end_task(memory.inner, params, task, inner_key)
        kept = of_each_class(task, per_class, memory.rows.weight.shape[1] // per_class, choice_key)
        return params, keep(memory._replace(inner=inner), task, kept, salt_key)

    return around(learner, init=init, gradient=gradient, end_task=end_task)


def stored_rows(epochs: bool, per_task: bool):
    """The function (buffer, key, rows) -> stored rows, as `replay` explains it."""
    if per_task and not epochs:
        raise ValueError("per_task goes through each task's rows in epochs: give epochs=True with it.")
    if epochs:
        return lambda buffer, key, rows: draw_in_epochs(buffer, rows, per_task)
    return draw


EXAMPLES = {"replay": replay(2), "reservoir_replay": reservoir_replay(6)}
