"""Train: gradient, optimiser, what the learner does after a step; many steps in one compiled `lax.scan`.

The runner of task sequences and `fit` for one data set make the same steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from bptoolkit.checks import check
from bptoolkit.counts import check_whole
from bptoolkit.fixed_point import Status
from bptoolkit.learning.learner import Learner, StreamSpec, check_outputs, rows_of
from bptoolkit.learning.sampling import positions
from bptoolkit.types import Batch, Dataset, Info, Key, Memory, Params, PyTree, Settling

__all__ = ["Curves", "Fitted", "Progress", "fit", "train"]


class Progress(NamedTuple):
    """What training carries from step to step."""

    params: Params
    opt_state: PyTree
    memory: Memory


class Curves(NamedTuple):
    """What each step reports, over the rows that count; NaN where a net does not settle."""

    loss: Float[Array, "steps"]
    settling_steps: Float[Array, "steps"]  # mean of the forward relaxations
    unconverged: Float[Array, "steps"]  # share of rows
    backward_steps: Float[Array, "steps"]  # mean of the adjoints
    backward_unconverged: Float[Array, "steps"]  # share of rows


class Fitted(NamedTuple):
    """A trained learner: `learner.predict(memory, params, batch)` uses it."""

    params: Params
    memory: Memory
    curves: Curves


def fit(
    learner: Learner,
    data: Dataset,
    optimizer: optax.GradientTransformation,
    key: Key,
    *,
    steps: int,
    batch: int | None = 32,
    replacement: bool = False,
    params: Params | None = None,
) -> Fitted:
    """Train one learner on the training rows of one data set.

    `batch=1` is online learning, an update after every sample; `batch=None` is full batch, one after the whole set;
    between them mini-batches, in epochs or, with `replacement`, drawn independently.  `optax.sgd(ε)` is gradient
    descent, `optax.sgd(ε, momentum=α)` that of 1986, Δw(t) = −ε ∂E/∂w + α Δw(t − 1).

    Args:
        learner: say `backprop(model)`.
        data: see `checks.check`; labels become one-hot targets over `data.classes` outputs.
        optimizer: any optax optimiser that goes by the gradient, the weights and the loss of the batch, so none with a
            line search.
        key: decides the first weights and the order of the rows.
        steps: updates, at least 1.
        batch: rows an update, or None for all.
        replacement: draw rows independently in place of going through epochs.
        params: weights to start from; `learner.model.init` if left out.

    Raises:
        ValueError: a data set that `check` refuses, steps or batch that is no whole number of at least 1, a model
            that does not fit the data, something else than an optimiser.
    """
    if not isinstance(learner, Learner):
        raise ValueError(f"fit trains a learner, got {type(learner).__name__}. Write fit(backprop(model), …).")
    checked_optimizer(optimizer)
    check(data)
    rows = data.train
    if rows.y.ndim != 1:
        raise ValueError(
            f"fit needs class numbers in train.y, got shape {rows.y.shape}; call `train` with own batches."
        )
    check_whole(steps=steps, batch=batch)
    batch = len(rows.y) if batch is None else batch
    init_key, memory_key, train_key, task_key = jax.random.split(key, 4)
    params = learner.model.init(init_key) if params is None else params
    example = jax.tree.map(lambda leaf: leaf[0], _some_rows(rows, data, jnp.zeros(1, jnp.int32)))
    check_outputs(learner.model, params, example)
    spec = StreamSpec(1, data.classes, data.classes, len(rows.y), data.classes, example, steps=steps)

    @jax.jit
    def program(params, rows, key, task_key):
        def draw(step, key):
            place, counts = positions(key, step, jnp.int32(len(rows.y)), batch, replacement)
            drawn = _some_rows(rows, data, place)
            return drawn._replace(weight=counts.astype(drawn.weight.dtype))

        params, memory = learner.start_task(learner.init(params, spec, memory_key), params, jnp.int32(0), task_key)
        return train(learner, optimizer, draw, Progress(params, optimizer.init(params), memory), key, steps)

    progress, curves = program(params, rows, train_key, task_key)
    return Fitted(progress.params, progress.memory, curves)


def train(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    draw: Callable[[Int[Array, ""], Key], Batch],
    progress: Progress,
    key: Key,
    steps: int,
    first: Int[Array, ""] | int = 0,
) -> tuple[Progress, Curves]:
    """Make steps first … first + steps − 1 of a stage whose key this is.  Compiles nothing: call it under `jit`.

    Args:
        learner, optimizer: as for `fit`.
        draw: (step, key) -> the rows of that step.
        progress: parameters, optimiser state and memory to go on from.
        key: of the stage; the same for every stretch of it.
        steps: how many to make; static.
        first: number of the first one, from 0.

    Returns:
        Where it got to, and the curves of these steps.
    """
    step = partial(_step, learner, optimizer, draw, *jax.random.split(key))
    return lax.scan(step, progress, jnp.int32(first) + jnp.arange(steps, dtype=jnp.int32))


def _step(
    learner, optimizer, draw, rows_key: Key, step_key: Key, progress: Progress, step: Int[Array, ""]
) -> tuple[Progress, Curves]:
    """One update."""
    params, opt_state, memory = progress
    gradient_key, after_key = jax.random.split(jax.random.fold_in(step_key, step))
    batch = draw(step, rows_key)
    grads, info, memory = learner.gradient(memory, params, batch, gradient_key)
    updates, opt_state = _updates(optimizer, grads, opt_state, params, info)
    updated = optax.apply_updates(params, updates)
    updated, opt_state, memory = learner.after_step(memory, params, updated, opt_state, batch, after_key)
    return Progress(updated, opt_state, memory), _point(info, batch)


def _updates(optimizer, grads: PyTree, opt_state, params: Params, info: Info) -> tuple[PyTree, PyTree]:
    """The optimiser's step; the loss goes to those that ask for it."""
    told = {} if info.loss is None else {"value": info.loss}
    try:
        return optax.with_extra_args_support(optimizer).update(grads, opt_state, params, **told)
    except TypeError as error:
        raise ValueError(
            f"The optimiser must do with gradient, weights and loss, got one that asks for more: {error}.\n"
            "Take one without a line search, such as optax.adam(1e-3)."
        ) from error


def _point(info: Info, batch: Batch) -> Curves:
    """One point of the curves."""
    nothing = jnp.asarray(jnp.nan, batch.weight.dtype)
    loss = nothing if info.loss is None else info.loss
    weight = batch.weight if info.weight is None else info.weight  # a strategy may have added rows
    return Curves(loss, *_summary(info.forward, weight), *_summary(info.backward, weight))


def _summary(settling: Settling | None, weight: Float[Array, "b"]) -> tuple[Array, Array]:
    """Mean steps, and share of rows that did not converge, over the rows that count."""
    if settling is None:
        return jnp.full((), jnp.nan, weight.dtype), jnp.full((), jnp.nan, weight.dtype)
    counts = (weight > 0).astype(weight.dtype)
    mean = lambda values: jnp.sum(counts * values.astype(weight.dtype)) / jnp.maximum(jnp.sum(counts), 1)
    return mean(settling.steps), mean(settling.status != Status.CONVERGED)


def _some_rows(rows, data: Dataset, place: Int[Array, "b"]) -> Batch:
    return rows_of(rows.x[place], rows.y[place], data.classes, data.scale)._replace(index=place)


def checked_optimizer(optimizer: Any) -> optax.GradientTransformation:
    """The optimiser, if it is one."""
    if not isinstance(optimizer, optax.GradientTransformation):
        got = getattr(optimizer, "__name__", repr(optimizer))
        raise ValueError(f"optimizer must be one of optax, as optax.adam(1e-3) makes it, got {got}.")
    return optimizer
