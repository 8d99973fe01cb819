"""What the runner runs: a model together with how it gets a gradient, and what it does around a step and after a task.

A learning rule makes a learner out of a model; a strategy makes a learner out of a learner.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bptoolkit.types import Batch, Info, Key, Memory, Model, Params, PyTree

__all__ = [
    "OWN_ROWS",
    "Curriculum",
    "Learner",
    "LearningRule",
    "Scenario",
    "Strategy",
    "StreamSpec",
    "Task",
    "bare_learner",
    "rows_of",
]

Scenario: TypeAlias = Literal["class", "domain", "task"]


class StreamSpec(NamedTuple):
    """Static facts of a stream, and of the budget, that a learner's memory is built from."""

    tasks: int  # how many
    classes: int  # of the data set
    classes_per_task: int  # of each task, the same for all
    rows_max: int  # training rows of the largest task
    outputs: int  # that the model has
    example: Batch  # one row, as `jax.ShapeDtypeStruct`s
    scenario: Scenario = "class"
    steps: int = 0  # updates a task


class Task(NamedTuple):
    """A task that has just been trained, as `end_task` sees it."""

    number: Int[Array, ""]  # from 0
    count: Int[Array, ""]  # its training rows
    rows_max: int  # those of the largest task: `rows` takes positions below it
    rows: Callable[[Int[Array, "b"]], Batch]  # by position; weight 0 from `count` on
    slot: Callable[[Int[Array, "b"]], Int[Array, "b"]]  # by position: which of the task's classes, from 0


class Curriculum(NamedTuple):
    """Which tasks' rows stage k trains on, and for how long."""

    sources: Callable[[Int[Array, "tasks"], Int[Array, ""]], Bool[Array, "tasks"]]  # of (all task numbers, k)
    rounds: Callable[[int], int]  # of k: how often the experiment's steps are made
    fresh: bool = False  # start again from the first weights
    reset_optimizer: bool = False  # start each stage with a fresh optimiser state, whatever the experiment says


class Learner(NamedTuple):
    """A model and how it learns; every function is pure, and sees batches.

    model: whose parameters are learned.
    init: (params, spec, key) -> memory, a tree of arrays whose shapes never change.
    gradient: (memory, params, batch, key) -> direction of descent, report, memory.
    after_step: (memory, before, after, opt_state, batch, key) -> the parameters, optimiser state and memory that hold,
        once the optimiser has gone from `before` to `after`: masks, resets, path integrals.
    end_task: (memory, params, task, key) -> parameters and memory, when a task is over.
    predict: (memory, params, batch) -> logits and report, as tests see them.
    curriculum: which rows each stage trains on, and for how long.
    start_task: (memory, params, task's number, key) -> parameters and memory, before the first step of a task.  What
        changes weights for the next task belongs here, not into `end_task`, after which the net is tested.
    view: (memory, params, task's number) -> the weights that the model computes with in that task; None where they
        are params themselves.  A strategy that differentiates `model.apply` goes through it.
    loss: whose gradient is followed, for strategies that need to know; None where there is none, or it is not told.
    free: (memory, params) -> how far each weight may be changed now, from 0 (not at all) to 1, or bools, like params;
        None where all may.  A strategy that changes weights by itself goes by it.
    alone: whether it has to be trained on one task at a time, as what gives each task a part of the net.
    looks_on: whether it looks at weights or rows beside its gradient, as penalties and rehearsal do: what gives tasks
        a view of their own has to be inside of it, not around it.
    apart: whether every task has a net of its own, so that params are those of one task only, as in `separate`.
    ends: whether it goes by what tasks left when they ended, as penalties and rehearsal do: a curriculum that starts
        anew with every stage, `joint`, would leave it nothing to go by.
    logits: whether `predict` gives what the model's outputs give; False where it answers by something else, which is
        not to be matched by them, as in `icarl`.
    anew: whether it trains a new net at the end of a task, whatever the steps before did, as `gdumb` does: a strategy
        around it would have no say.
    """

    model: Model
    init: Callable[[Params, StreamSpec, Key], Memory]
    gradient: Callable[[Memory, Params, Batch, Key], tuple[PyTree, Info, Memory]]
    after_step: Callable[[Memory, Params, Params, PyTree, Batch, Key], tuple[Params, PyTree, Memory]]
    end_task: Callable[[Memory, Params, Task, Key], tuple[Params, Memory]]
    predict: Callable[[Memory, Params, Batch], tuple[Float[Array, "b k"], Info]]
    curriculum: Curriculum
    start_task: Callable[[Memory, Params, Int[Array, ""], Key], tuple[Params, Memory]] = (
        lambda memory, params, task, key: (params, memory)
    )
    view: Callable[[Memory, Params, Int[Array, ""]], Params] | None = None
    loss: Callable[..., Float[Array, ""]] | None = None
    free: Callable[[Memory, Params], PyTree] | None = None
    alone: bool = False
    looks_on: bool = False
    apart: bool = False
    ends: bool = False
    logits: bool = True
    anew: bool = False


LearningRule: TypeAlias = Callable[[Model], Learner]
"""How a gradient, or another direction of change, comes about for a model; `backprop` is one."""
Strategy: TypeAlias = Callable[[Learner], Learner]
"""What is done against forgetting, around a learner; `ewc(10.0)` is one."""

OWN_ROWS = Curriculum(sources=lambda tasks, k: tasks == k, rounds=lambda k: 1)


def bare_learner(model: Model, gradient, loss=None) -> Learner:
    """A learner that keeps no memory and does nothing but follow its gradient, that of `loss` if it says so."""
    return Learner(
        model=model,
        init=lambda params, spec, key: (),
        gradient=gradient,
        after_step=lambda memory, before, after, opt_state, batch, key: (after, opt_state, memory),
        end_task=lambda memory, params, task, key: (params, memory),
        predict=lambda memory, params, batch: jax.vmap(model.apply, (None, 0))(params, batch.x),
        curriculum=OWN_ROWS,
        loss=loss,
    )


def check_outputs(model: Model, params: Params, example: Batch) -> None:
    """Raise unless the model takes the stream's examples and has an output for every label."""
    try:
        logits = jax.eval_shape(lambda p, x: model.apply(p, x)[0], params, example.x)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The model cannot read examples of shape {example.x.shape} ({example.x.size} values): {error}"
        ) from error
    if logits.ndim != 1 or logits.shape[0] != example.target.shape[-1]:
        raise ValueError(
            f"The stream needs a model with {example.target.shape[-1]} outputs, got logits of shape {logits.shape}.\n"
            f"Make the last layer {example.target.shape[-1]} wide, or choose another scenario."
        )


def rows_of(x: Array, y: Int[Array, "b"], outputs: int, scale: float) -> Batch:
    """Rows of a labelled data set, read as floats; all outputs active, all weights one."""
    b, real = y.shape[0], jnp.result_type(float)
    return Batch(
        x=x.astype(real) / jnp.asarray(scale, real),
        target=jax.nn.one_hot(y, outputs, dtype=real),
        active=jnp.ones((b, outputs), bool),
        weight=jnp.ones(b, real),
        temperature=jnp.ones(b, real),
        task=jnp.zeros(b, jnp.int32),
        index=jnp.arange(b, dtype=jnp.int32),
    )
