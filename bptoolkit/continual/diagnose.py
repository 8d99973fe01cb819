"""Why a net answers wrongly: is what it knew lost, or only out of reach?  Four accuracies of one net on every task.

    plain          all active outputs compete, as in `Result.accuracy`
    masked         only the task's own outputs compete: what is left without the bias towards recent classes
    nearest mean   the class whose mean feature is nearest, means taken over training rows
    linear probe   softmax regression from features to classes, fitted anew on training rows of all tasks

In class-incremental learning "0, 0, 0, 0, 99" is ambiguous.  Where the masked accuracy is still high, the net only
prefers the last classes; where it is low but nearest mean or probe are high, the readout is spoilt; where all are low,
the representation is.  Features are the last hidden layer's activities, or the settled state.

Reference: Davari et al. (2022), CVPR (probes); Rebuffi et al. (2017), CVPR (nearest mean).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from bptoolkit.learning.losses import correct
from bptoolkit.types import Batch, Model, Params

__all__ = ["Diagnosis", "diagnose", "features", "nearest_mean", "probe"]


class Diagnosis(NamedTuple):
    """Accuracies (tasks,) of one net, in four ways."""

    plain: Float[Array, "tasks"]
    masked: Float[Array, "tasks"]
    nearest_mean: Float[Array, "tasks"]
    linear_probe: Float[Array, "tasks"]


def features(model: Model) -> Callable[[Params, Float[Array, "*d"]], Float[Array, "f"]]:
    """The function (params, x) -> what the readout reads: the last hidden layer, or the settled state.

    Raises:
        ValueError: a model that shows neither layers nor a cell that settles.
    """
    layers, cell = model.layers, model.cell
    if layers is not None and len(layers) > 1:

        def hidden(params: Params, x: Float[Array, "*d"]) -> Float[Array, "f"]:
            h = x
            for layer, p in zip(layers[:-1], params[:-1], strict=True):
                h = layer.activation(layer.linear(p, h))
            return jnp.ravel(h)

        return hidden
    if cell is not None and cell.settle is not None:
        settle = cell.settle
        flat = lambda z: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(z)])
        return lambda params, x: flat(settle(params, x).value)
    raise ValueError(
        "Features need a model with a hidden layer or a settled cell, got one with neither.\n"
        "Build it with models.mlp, models.convnet or models.equilibrium."
    )


def diagnose(model: Model, params: Params, train: Batch, test: Batch, steps: int = 300) -> Diagnosis:
    """Four accuracies on the test rows of every task.

    Args:
        model, params: one net.
        train: rows of all tasks, as many as one likes; means and probe are taken from them.
        test: rows of all tasks; `Batch.task` says of which.  Rows of weight 0 do not count.
        steps: of gradient descent with momentum, full batch, that fit the probe.

    Raises:
        ValueError: a model without features.
    """
    see = jax.vmap(features(model), (None, 0))
    logits = jax.vmap(lambda x: model.apply(params, x)[0])(test.x)
    known, new = see(params, train.x), see(params, test.x)
    own = outputs_of_tasks(train, test)
    scores = {
        "plain": (logits, test.active),
        "masked": (logits, test.active & own),
        "nearest_mean": (nearest_mean(known, train, new), test.active),
        "linear_probe": (probe(known, train, new, steps), test.active),
    }
    right = {name: jax.vmap(correct)(score, test.target, active) for name, (score, active) in scores.items()}
    tasks = int(np.max(np.asarray(test.task))) + 1
    return Diagnosis(**{name: _by_task(hits, test, tasks) for name, hits in right.items()})


def outputs_of_tasks(train: Batch, test: Batch) -> Bool[Array, "b k"]:
    """For each test row the outputs that its task's training rows are labelled with."""
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
    mean, spread = jnp.mean(known, axis=0), jnp.std(known, axis=0)
    ready = lambda f: (f - mean) / jnp.where(spread > 0, spread, 1) / known.shape[1] ** 0.5
    x, weight = ready(known), train.weight / jnp.maximum(jnp.sum(train.weight), 1)

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
