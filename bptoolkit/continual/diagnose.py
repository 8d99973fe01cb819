"""Why a net answers wrongly: is what it knew lost, or only out of reach?  Four accuracies of one net on every task.

    plain          all active outputs compete, as in `Result.accuracy`
    masked         only the task's own outputs compete: what is left without the bias towards recent classes
    nearest mean   the class whose mean feature is nearest, means taken over training rows
    linear probe   softmax regression from features to classes, fitted anew on training rows of all tasks

In class-incremental learning "0, 0, 0, 0, 99" is ambiguous.  Where the masked accuracy is still high, the net only
prefers the last classes; where it is low but nearest mean or probe are high, the readout is spoilt; where all are low,
the representation is.  Features are the last hidden layer's activities, or the settled state.

A learner answers and is looked into as it is in its tasks: under its gates, through its masks, by its own nearest
means.  Means and probe are taken over training rows of all tasks, those to come too: they tell what the features are
good for, not what the net could have learned by then.

Reference: Davari et al. (2022), CVPR (probes); Rebuffi et al. (2017), CVPR (nearest mean).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from bptoolkit import trees
from bptoolkit.continual.calibration import brier_score, calibration_error
from bptoolkit.continual.views import by_task, choose_rows
from bptoolkit.learning.learner import Learner, bare_learner
from bptoolkit.learning.losses import correct
from bptoolkit.types import Batch, Memory, Model, Params

__all__ = ["Diagnosis", "Findings", "diagnose", "features", "features_seen", "findings", "nearest_mean", "probe"]

PROBE_STEPS = 300  # of gradient descent that fit a linear probe


class Diagnosis(NamedTuple):
    """Accuracies (tasks,) of one net, in four ways."""

    plain: Float[Array, "tasks"]
    masked: Float[Array, "tasks"]
    nearest_mean: Float[Array, "tasks"]
    linear_probe: Float[Array, "tasks"]


class Findings(NamedTuple):
    """Of one net, each (tasks,); of a run, (seeds, untrained and after 1 … T, on 1 … T).

    The first four are those of `Diagnosis`; the others are of the learner's answers to the rows of one task, as
    `calibration_error` and `brier_score` find them.  The error is too large where rows are few: with n of them in 15
    bins, even a net that is calibrated has one of up to √(2/π · 15/n) / 2.
    """

    plain: Float[Array, "*seeds_after tasks"]
    masked: Float[Array, "*seeds_after tasks"]
    nearest_mean: Float[Array, "*seeds_after tasks"]
    linear_probe: Float[Array, "*seeds_after tasks"]
    calibration_error: Float[Array, "*seeds_after tasks"]
    brier_score: Float[Array, "*seeds_after tasks"]


def features(model: Model) -> Callable[[Params, Float[Array, "*d"]], Float[Array, "f"]]:
    """The function (params, x) -> what the readout reads: the last hidden layer, or the settled state.

    Raises:
        ValueError: a model that shows neither layers nor a cell that settles.
    """
    if not shows_features(model):
        raise ValueError(
            "Features need a model with a hidden layer or a settled cell, got one with neither.\n"
            "Build it with models.mlp, models.convnet or models.equilibrium."
        )
    layers, cell = model.layers, model.cell
    if layers is not None and len(layers) > 1:

        def hidden(params: Params, x: Float[Array, "*d"]) -> Float[Array, "f"]:
            h = x
            for layer, p in zip(layers[:-1], params[:-1], strict=True):
                h = layer.activation(layer.linear(p, h))
            return jnp.ravel(h)

        return hidden
    assert cell is not None
    assert cell.settle is not None
    settle = cell.settle
    flat = lambda z: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(z)])
    return lambda params, x: flat(settle(params, x).value)


def shows_features(model: Model) -> bool:
    """Whether `features` can be had of it."""
    hidden = model.layers is not None and len(model.layers) > 1
    return hidden or (model.cell is not None and model.cell.settle is not None)


def features_seen(learner: Learner) -> Callable[[Memory, Params, Batch], Float[Array, "b f"]] | None:
    """The function (memory, params, batch) -> features of each row, of the net as the row's task sees it.

    None where they are not those of one net: a model without features, or a net for every task, as in `separate`.
    """
    if learner.apart or not shows_features(learner.model):
        return None
    see, view = jax.vmap(features(learner.model), (None, 0)), learner.view
    if view is None:
        return lambda memory, params, batch: see(params, batch.x)

    def seen(memory: Memory, params: Params, batch: Batch) -> Float[Array, "b f"]:
        in_task = lambda task: see(view(memory, params, task), batch.x)
        start = trees.zeros_like(jax.eval_shape(in_task, batch.task[0]))
        return by_task(lambda task, so_far: choose_rows(batch.task == task, in_task(task), so_far), start, batch)

    return seen


def diagnose(
    model: Model | Learner, params: Params, train: Batch, test: Batch, steps: int = PROBE_STEPS, *, memory: Memory = ()
) -> Diagnosis:
    """Four accuracies on the test rows of every task.  After every task of a run: `Experiment.diagnose`.

    Args:
        model, params: one net.  A model is asked as such; whatever answers otherwise, as nets that are gated or masked
            by tasks do, must be given as its learner, with its memory.
        train: rows of all tasks, as many as one likes; means and probe are taken from them.
        test: rows of all tasks; `Batch.task` says of which.  Rows of weight 0 do not count.
        steps: of gradient descent with momentum, full batch, that fit the probe.
        memory: of the learner, as in `state.progress.memory` of a run, for one seed.

    Raises:
        ValueError: a model without features, a learner that keeps a net for every task.
    """
    learner = model if isinstance(model, Learner) else bare_learner(model, None)
    see = features_seen(learner)
    if see is None:
        features(learner.model)  # says what is missing
        raise ValueError("Features are of one net, got a learner with a net for every task. Diagnose each by itself.")
    logits, _ = learner.predict(memory, params, test)
    known, new = (batch._replace(x=see(memory, params, batch)) for batch in (train, test))
    tasks = int(np.max(np.asarray(test.task))) + 1
    return _diagnosis(logits, known, new, outputs_of_tasks(train, test), tasks, steps)


def findings(logits: Float[Array, "b k"], known: Batch, new: Batch, own: Bool[Array, "b k"], tasks: int) -> Findings:
    """What a run finds after a task.

    Args:
        logits: the learner's answers to the test rows.
        known: training rows of all tasks; in place of `x` their features, of width 0 where there are none.
        new: test rows likewise, equally many of every task (some of weight 0), task after task.
        own: for each test row the outputs of its task.
        tasks: how many.
    """
    by_task = lambda leaf: leaf.reshape(tasks, len(leaf) // tasks, *leaf.shape[1:])
    answers = jax.tree.map(by_task, (logits, new))
    scores = [jax.vmap(score)(*answers) for score in (calibration_error, brier_score)]
    return Findings(*_diagnosis(logits, known, new, own, tasks), *scores)


def _diagnosis(
    logits: Float[Array, "b k"],
    known: Batch,
    new: Batch,
    own: Bool[Array, "b k"],
    tasks: int,
    steps: int = PROBE_STEPS,
) -> Diagnosis:
    """Four accuracies by task, of rows whose `x` are their features; NaN for two of them where there are none."""
    right = lambda scores, active: jax.vmap(correct)(scores, new.target, active)
    share = lambda scores, active: _by_task(right(scores, active), new, tasks)
    unknown = jnp.full(tasks, jnp.nan, logits.dtype)
    featured = new.x.size > 0
    return Diagnosis(
        plain=share(logits, new.active),
        masked=share(logits, new.active & own),
        nearest_mean=share(nearest_mean(known.x, known, new.x), new.active) if featured else unknown,
        linear_probe=share(probe(known.x, known, new.x, steps), new.active) if featured else unknown,
    )


def outputs_of_tasks(train: Batch, test: Batch) -> Bool[Array, "b k"]:
    """For each test row the outputs that its task's training rows are labelled with, strayed ones among them."""
    same = (test.task[:, None] == train.task[None, :]) & (train.weight > 0)[None, :]
    return (same.astype(train.target.dtype) @ train.target) > 0


def nearest_mean(known: Float[Array, "n f"], train: Batch, new: Float[Array, "m f"]) -> Float[Array, "m k"]:
    """The scores of `nearest`, by the means of the training rows."""
    return nearest(*class_means(known, train), new)


def class_means(known: Float[Array, "n f"], train: Batch) -> tuple[Float[Array, "k f"], Bool[Array, "k"]]:
    """The mean of the features of each class, all of length one, and which classes have rows."""
    member = (train.target * train.weight[:, None]).astype(known.dtype)  # (n, k)
    return unit(member.T @ unit(known)), jnp.sum(member, axis=0) > 0


def nearest(means: Float[Array, "k f"], there: Bool[Array, "k"], new: Float[Array, "m f"]) -> Float[Array, "m k"]:
    """−‖f/‖f‖ − μ_c‖²; −∞ for a class that is not there."""
    distance = jnp.sum(jnp.square(unit(new)[:, None, :] - means[None, :, :]), axis=-1)
    return jnp.where(there, -distance, -jnp.inf)


def unit(f: Float[Array, "n f"]) -> Float[Array, "n f"]:
    """Each row at length one; a row of zeros stays."""
    return f / jnp.maximum(jnp.linalg.norm(f, axis=-1, keepdims=True), jnp.finfo(f.dtype).tiny)


def probe(known: Float[Array, "n f"], train: Batch, new: Float[Array, "m f"], steps: int) -> Float[Array, "m k"]:
    """Logits of softmax regression on standardised features: full-batch descent from zero, momentum 0.9."""
    weight = train.weight / jnp.maximum(jnp.sum(train.weight), 1)
    mean = weight @ known
    spread = jnp.sqrt(weight @ jnp.square(known - mean))
    ready = lambda f: (f - mean) / jnp.where(spread > 0, spread, 1) / known.shape[1] ** 0.5
    x = ready(known)

    def loss(w):
        log_p = jax.nn.log_softmax(x @ w[:-1] + w[-1])
        return -jnp.sum(weight[:, None] * train.target * log_p)

    def step(carry, _):
        w, velocity = carry
        velocity = 0.9 * velocity - jax.grad(loss)(w)
        return (w + velocity, velocity), None

    start = jnp.zeros((known.shape[1] + 1, train.target.shape[1]), known.dtype)
    (w, _), _ = lax.scan(step, (start, start), length=steps)
    return ready(new) @ w[:-1] + w[-1]


def _by_task(hits: Bool[Array, "b"], test: Batch, tasks: int) -> Float[Array, "tasks"]:
    counts = (test.weight > 0).astype(test.weight.dtype)
    own = (test.task[:, None] == jnp.arange(tasks, dtype=jnp.int32)[None, :]).astype(test.weight.dtype) * counts[
        :, None
    ]
    return (hits.astype(own.dtype) @ own) / jnp.sum(own, axis=0)
