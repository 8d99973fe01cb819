"""What every strategy does alike: it keeps a learner inside, and hands on to it what it does not change itself.

Its memory is a NamedTuple whose field `inner` is the memory of the learner inside.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bptoolkit.learning.learner import OWN_ROWS, Learner, StreamSpec, Task
from bptoolkit.types import Batch, Info, Key, Memory, Model, Params, PyTree

__all__ = [
    "adding",
    "around",
    "as_far_as",
    "require_kept",
    "require_learner",
    "require_logits",
    "require_mixable",
    "require_own_rows",
    "require_steps",
    "seen_in",
]

STARTS_ANEW = (
    "{0} starts anew with every stage, so a strategy that goes by what earlier tasks left (a penalty, rehearsal, "
    "distillation) would do nothing.\nWrite {0}(rule), or cumulative, which goes on."
)


def around(
    learner: Learner,
    *,
    init: Callable,
    gradient: Callable,
    after_step: Callable | None = None,
    start_task: Callable | None = None,
    end_task: Callable | None = None,
    predict: Callable | None = None,
    looks_on: bool = True,
    ends: bool | None = None,
) -> Learner:
    """The learner with these functions in place of its own; what is left out goes to the learner inside.

    `looks_on` is as in `Learner`: False for what goes by the gradient alone, and so may be inside of a view.  So is
    `ends`; if left out, it is whether `end_task` is given.

    Raises:
        ValueError: no learner; one that trains a new net at the end of a task; one that starts anew at every stage, for
            a strategy that goes by what tasks left.
    """
    require_steps(learner)
    ends = end_task is not None if ends is None else ends
    if ends and learner.curriculum.fresh:
        raise ValueError(STARTS_ANEW.format("joint"))
    view, free = learner.view, learner.free

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
        free=None if free is None else lambda memory, params: free(memory.inner, params),
        looks_on=looks_on or learner.looks_on,
        ends=ends or learner.ends,
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
    free: Callable[[Any, Params], PyTree] | None = None,
    looks_on: bool = True,
) -> Learner:
    """The learner with something done beside: `around` for strategies that never do without the learner inside.

    A key is split at each hook that does something of its own: other strategies inside then have other luck, even where
    this one has no effect, so that a pair of seeds shares streams and first weights, not what is kept or drawn.

    Args:
        learner: the one inside.
        init: of (inner memory, params, spec, key): the memory.
        rows: what the learner inside is given in place of the batch.
        adjust: of (memory, params, gradient of the one inside, batch): the gradient, and the memory.
        after_step, start_task, end_task: as in `Learner`; run after those of the one inside, on what they left.
        free: as in `Learner`, of what is held here: a step of the optimiser, and start and end of a task inside,
            change a weight so far and no further.  What is held inside is held against this strategy's own changes.
        looks_on: as in `Learner`.
    """
    require_steps(learner)
    free_inside = learner.free

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
        inner_key, own_key = (key, key) if after_step is None else jax.random.split(key)
        params, state, inner = learner.after_step(memory.inner, before, after, opt_state, batch, inner_key)
        memory = memory._replace(inner=inner)
        if free is not None:
            params = as_far_as(free(memory, before), before, params)
        if after_step is None:
            return params, state, memory
        own, state, memory = after_step(memory, before, params, state, batch, own_key)
        return held_inside(memory, params, own), state, memory

    def call_start_task(memory, params: Params, task: Int[Array, ""], key: Key):
        inner_key, own_key = jax.random.split(key)
        began, inner = learner.start_task(memory.inner, params, task, inner_key)
        memory = memory._replace(inner=inner)
        if start_task is not None:
            own, memory = start_task(memory, began, task, own_key)
            began = held_inside(memory, began, own)
        return began if free is None else as_far_as(free(memory, params), params, began), memory

    def call_end_task(memory, params: Params, task: Task, key: Key):
        inner_key, own_key = jax.random.split(key)
        ended, inner = learner.end_task(memory.inner, params, task, inner_key)
        memory = memory._replace(inner=inner)
        if free is not None:
            ended = as_far_as(free(memory, params), params, ended)
        if end_task is None:
            return ended, memory
        own, memory = end_task(memory, ended, task, own_key)
        return held_inside(memory, ended, own), memory

    def held_inside(memory, before: Params, after: Params) -> Params:
        return after if free_inside is None else as_far_as(free_inside(memory.inner, before), before, after)

    outer = around(
        learner,
        init=call_init,
        gradient=call_gradient,
        after_step=call_after_step,
        start_task=call_start_task,
        end_task=call_end_task,
        looks_on=looks_on,
        ends=end_task is not None,
    )
    if free is None:
        return outer

    def free_in_both(memory, params: Params) -> PyTree:
        mine = free(memory, params)
        if free_inside is None:
            return mine
        both = lambda p, a, b: a.astype(p.dtype) * b.astype(p.dtype)
        return jax.tree.map(both, params, mine, free_inside(memory.inner, params))

    return outer._replace(free=free_in_both)


def require_learner(learner: Any) -> None:
    """Raise where a strategy was put around something else than a learner."""
    if not isinstance(learner, Learner):
        hint = " Make one of a model by a rule: backprop(model)." if isinstance(learner, Model) else ""
        raise ValueError(f"A strategy goes around a learner, got {type(learner).__name__}.{hint}")


def require_steps(learner: Learner) -> None:
    """Raise where what is inside takes no part of its net from the steps that it is given."""
    require_learner(learner)
    if learner.anew:
        raise ValueError(
            "gdumb trains a new net at the end of each task, in which a strategy around it would have no say.\n"
            "Put what goes by the gradient alone inside, as in gdumb(…)(random_features(rule)), or take gdumb alone."
        )


def require_mixable(learner: Learner, name: str) -> None:
    """Raise where what is inside has to be trained on one task at a time."""
    require_learner(learner)
    if learner.alone:
        raise ValueError(
            f"{name} trains on rows of several tasks at once, which what is inside cannot: packnet, hat and separate "
            f"give each task a part of the net while it is trained alone.\nWrite {name}(rule), or take xdg."
        )


def require_own_rows(learner: Learner, name: str) -> None:
    """Raise where what is inside trains on rows of several tasks at once."""
    require_learner(learner)
    if learner.curriculum is not OWN_ROWS:
        raise ValueError(
            f"{name} trains on one task at a time, got joint, cumulative or separate inside of it. Take that away."
        )


def require_kept(learner: Learner, name: str, sentence: str = STARTS_ANEW) -> None:
    """Raise where what is inside would lose what it goes by, since every stage starts anew."""
    require_learner(learner)
    if learner.ends:
        raise ValueError(sentence.format(name))


def require_logits(learner: Learner, name: str) -> None:
    """Raise where the answers inside are not those of the outputs of one net, which it could be made to keep."""
    require_learner(learner)
    if not learner.logits or learner.apart:
        raise ValueError(
            f"{name} lets one net's outputs match its earlier answers, got a learner that answers by something else "
            f"(icarl, generative_classifier) or by a net for every task (separate).\nPut {name} inside of icarl; "
            "separate nets share nothing that could be forgotten."
        )


def as_far_as(free: PyTree, before: Params, after: Params) -> Params:
    """From `before` towards `after` as far as each weight is free: exactly `before` at 0, exactly `after` at 1."""

    def reached(f: Array, b: Array, a: Array) -> Array:
        f = f.astype(b.dtype)
        return jnp.where(f == 0, b, jnp.where(f == 1, a, b + f * (a - b)))

    return jax.tree.map(reached, free, before, after)


def seen_in(learner: Learner, memory: Memory, task: Int[Array, ""]) -> Model:
    """The model as it computes in a task, to be differentiated by its params: through the learner's view."""
    view, model = learner.view, learner.model
    if view is None:
        return model
    return Model(model.init, lambda params, x: model.apply(view(memory, params, task), x))
