"""What every strategy does alike: it keeps a learner inside, and hands on to it what it does not change itself.

Its memory is a NamedTuple whose field `inner` is the memory of the learner inside.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Int

from bptoolkit.learning.learner import Learner, StreamSpec, Task
from bptoolkit.types import Batch, Info, Key, Memory, Model, Params, PyTree

__all__ = ["adding", "around", "seen_in"]


def around(
    learner: Learner,
    *,
    init: Callable,
    gradient: Callable,
    after_step: Callable | None = None,
    start_task: Callable | None = None,
    end_task: Callable | None = None,
    predict: Callable | None = None,
) -> Learner:
    """The learner with these functions in place of its own; what is left out goes to the learner inside."""
    view = learner.view

    def after_inside(memory: Any, before: Params, after: Params, opt_state, batch: Batch, key: Key):
        params, opt_state, inner = learner.after_step(memory.inner, before, after, opt_state, batch, key)
        return params, opt_state, memory._replace(inner=inner)

    def start_inside(memory: Any, params: Params, task, key: Key) -> tuple[Params, Memory]:
        params, inner = learner.start_task(memory.inner, params, task, key)
        return params, memory._replace(inner=inner)

    def end_inside(memory: Any, params: Params, task, key: Key) -> tuple[Params, Memory]:
        params, inner = learner.end_task(memory.inner, params, task, key)
        return params, memory._replace(inner=inner)

    def predict_inside(memory: Any, params: Params, batch: Batch):
        return learner.predict(memory.inner, params, batch)

    return learner._replace(
        init=init,
        gradient=gradient,
        after_step=after_step or after_inside,
        start_task=start_task or start_inside,
        end_task=end_task or end_inside,
        predict=predict or predict_inside,
        view=None if view is None else lambda memory, params, task: view(memory.inner, params, task),
    )


def adding(
    learner: Learner,
    init: Callable[[Memory, Params, StreamSpec, Key], Any],
    *,
    rows: Callable[[Any, Params, Batch, Key], Batch] | None = None,
    adjust: Callable[[Any, Params, PyTree, Batch], tuple[PyTree, Any]] | None = None,
    after_step: Callable[..., tuple[Params, PyTree, Any]] | None = None,
    start_task: Callable[[Any, Params, Int[Array, ""], Key], tuple[Params, Any]] | None = None,
    end_task: Callable[[Any, Params, Task, Key], tuple[Params, Any]] | None = None,
) -> Learner:
    """The learner with something done beside: `around` for strategies that never do without the learner inside.

    A key is split only where something of one's own is drawn: what draws nothing leaves the luck of others as it is.

    Args:
        learner: the one inside.
        init: of (inner memory, params, spec, key): the memory.
        rows: what the learner inside is given in place of the batch.
        adjust: of (memory, params, gradient of the one inside, batch): the gradient, and the memory.
        after_step, start_task, end_task: as in `Learner`; run after those of the one inside, on what they left.
    """

    def call_init(params: Params, spec: StreamSpec, key: Key):
        inner_key, own_key = jax.random.split(key)
        return init(learner.init(params, spec, inner_key), params, spec, own_key)

    def call_gradient(memory, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Memory]:
        given = batch
        if rows is not None:
            key, rows_key = jax.random.split(key)
            given = rows(memory, params, batch, rows_key)
        grads, info, inner = learner.gradient(memory.inner, params, given, key)
        memory = memory._replace(inner=inner)
        if adjust is not None:
            grads, memory = adjust(memory, params, grads, batch)
        return grads, info, memory

    def call_after_step(memory, before: Params, after: Params, opt_state, batch: Batch, key: Key):
        inside = lambda key: learner.after_step(memory.inner, before, after, opt_state, batch, key)
        if after_step is None:
            params, state, inner = inside(key)
            return params, state, memory._replace(inner=inner)
        inner_key, own_key = jax.random.split(key)
        params, state, inner = inside(inner_key)
        return after_step(memory._replace(inner=inner), before, params, state, batch, own_key)

    def then(own, inside):
        def call(memory, params: Params, task, key: Key):
            inner_key, own_key = jax.random.split(key)
            params, inner = inside(memory.inner, params, task, inner_key)
            memory = memory._replace(inner=inner)
            return (params, memory) if own is None else own(memory, params, task, own_key)

        return call

    return around(
        learner,
        init=call_init,
        gradient=call_gradient,
        after_step=call_after_step,
        start_task=then(start_task, learner.start_task),
        end_task=then(end_task, learner.end_task),
    )


def seen_in(learner: Learner, memory: Memory, task: Int[Array, ""]) -> Model:
    """The model as it computes in a task, to be differentiated by its params: through the learner's view."""
    view, model = learner.view, learner.model
    if view is None:
        return model
    return Model(model.init, lambda params, x: model.apply(view(memory, params, task), x))
