"""Tasks that see other weights than params: gradients pulled back through the view, answers task by task."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bptoolkit import trees
from bptoolkit.continual.nesting import require_learner
from bptoolkit.learning.learner import Learner, StreamSpec
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = [
    "View",
    "answers_by_view",
    "by_task",
    "choose_rows",
    "pulled_back",
    "require_inside",
    "require_told",
    "through_view",
]

View = Callable[[Any, Params, Int[Array, ""]], Params]  # (memory, params, task) -> the weights that a task sees


def answers_by_view(outer: Learner, learner: Learner, own_view: View) -> Learner:
    """`outer` around `learner`, where every row is answered with the weights that its task sees."""
    inside = learner.view

    def view(memory, params: Params, task: Int[Array, ""]) -> Params:
        seen = own_view(memory, params, task)
        return seen if inside is None else inside(memory.inner, seen, task)

    def predict(memory, params: Params, batch: Batch):
        answers = lambda task: learner.predict(memory.inner, own_view(memory, params, task), batch)

        def answer(task, so_far):
            return choose_rows(batch.task == task, answers(task), so_far)

        shapes = jax.eval_shape(answers, batch.task[0])  # what a task sees may be of other shapes than params
        return by_task(answer, trees.zeros_like(shapes), batch)

    return outer._replace(predict=predict, view=view)


def through_view(outer: Learner, learner: Learner, own_view: View) -> Learner:
    """`answers_by_view`, and a gradient that is pulled back through the view."""

    def gradient(memory, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Memory]:
        see = lambda params, task: own_view(memory, params, task)
        grads, info, inner = pulled_back(learner, memory.inner, see, params, batch, key)
        return grads, info, memory._replace(inner=inner)

    return answers_by_view(outer, learner, own_view)._replace(gradient=gradient)


def pulled_back(
    learner: Learner, inner: Memory, see: Callable[[PyTree, Int[Array, ""]], Params], variables: PyTree, batch, key: Key
) -> tuple[PyTree, Info, Memory]:
    """The gradient by the variables that the weights of a task, see(variables, task), are made from.

    The learner is asked once for every task in the batch, for that task's rows; their gradients add up by weight.
    """
    total = jnp.sum(batch.weight)

    def of_task(task, so_far):
        grads, info, inner = so_far
        mine = jnp.where(batch.task == task, batch.weight, 0)
        share = jnp.sum(mine) / jnp.where(total > 0, total, 1)
        seen, pull = jax.vjp(lambda v: see(v, task), variables)
        rows = batch._replace(weight=mine)
        new, told, inner = learner.gradient(inner, seen, rows, jax.random.fold_in(key, task))
        grads = jax.tree.map(lambda g, n: g + share.astype(n.dtype) * n, grads, pull(new)[0])
        return grads, _merge(info, told, share, rows), inner

    seen = jax.eval_shape(lambda: see(variables, batch.task[0]))
    shapes = jax.eval_shape(lambda p: learner.gradient(inner, p, batch, key)[1], seen)
    return by_task(of_task, (trees.zeros_like(variables), trees.zeros_like(shapes), inner), batch)


def _merge(so_far: Info, new: Info, share: Float[Array, ""], rows: Batch) -> Info:
    """Losses add up by their shares; what is told of each row is taken where the row counted."""
    counted = (rows.weight if new.weight is None else new.weight) > 0
    loss = None if new.loss is None or so_far.loss is None else so_far.loss + share.astype(new.loss.dtype) * new.loss
    told = choose_rows(counted, new._replace(loss=None), so_far._replace(loss=None))
    return told._replace(loss=loss)


def by_task(function: Callable[[Int[Array, ""], Any], Any], start: Any, batch: Batch) -> Any:
    """function(task, so far) for every task that the batch has rows of, one after the other.

    As many calls as there are different tasks, one for a batch of one task, also under `vmap`.
    """

    def call(state):
        left, value = state
        task = batch.task[jnp.argmax(left)]
        return left & (batch.task != task), function(task, value)

    left = jnp.ones(batch.task.shape, bool)
    return lax.while_loop(lambda state: jnp.any(state[0]), call, (left, start))[1]


def choose_rows(mine: Bool[Array, "b"], new: PyTree, old: PyTree) -> PyTree:
    """Rows of `new` where they are mine, else those of `old`; every leaf has rows as its first axis."""
    return jax.tree.map(lambda n, o: jnp.where(mine.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)


def require_inside(learner: Learner, name: str) -> None:
    """Raise where the learner inside looks at weights or rows that it does not see through the view."""
    require_learner(learner)
    if learner.looks_on:
        raise ValueError(
            f"{name} must be inside of penalties and rehearsal, or they see other weights than the tasks do; got one "
            f"of them inside of {name}.\nWrite replay(20)({name}(…)(rule)), not {name}(…)(replay(20)(rule))."
        )


def require_told(spec: StreamSpec, name: str) -> None:
    """Raise unless the net is told the task at test time."""
    if spec.scenario != "task":
        raise ValueError(
            f'{name} must be told the task when it predicts, which only scenario "task" does, got "{spec.scenario}".\n'
            'Make the stream with scenario="task", or take a strategy that needs no task, such as ewc or replay.'
        )
