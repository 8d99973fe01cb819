"""The diagonal Fisher information of the weights: F = E_x E_y (∂ log p(y|x)/∂θ)², per example, then the mean.

    exact      y over all labels, weighted by the net's own p(y|x)
    sampled    one y drawn from p(y|x)
    empirical  y the label of the row

The square of a batch's mean gradient is none of the three: at batch 128 it is some 90 times too small.
Reference: Kirkpatrick et al. (2017), PNAS 114; Kunstner et al. (2019), NeurIPS, on the empirical one.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bptoolkit import trees
from bptoolkit.learning.attribution import through_layers
from bptoolkit.learning.learner import Task
from bptoolkit.learning.losses import probabilities
from bptoolkit.learning.sampling import shuffled
from bptoolkit.types import Batch, Key, Layer, Model, Params, PyTree

__all__ = ["FisherKind", "fisher", "fisher_of_task", "mean_of_task"]

FisherKind: TypeAlias = Literal["exact", "sampled", "empirical"]
CHUNK = 64  # rows whose per-example gradients are in memory at once, where they must be


def fisher(model: Model, params: Params, batch: Batch, key: Key, kind: FisherKind = "exact") -> Params:
    """Σ_r w_r F_r over the rows of a batch, a tree like params.

    For dense layers the sum over rows of squared per-example gradients is itself a product, (h²)ᵀ(Σ_y p_y δ_y²), so
    no per-example gradient is ever formed; any other model goes row by row.

    Args:
        model, params: the net, and where F is taken.
        batch: its rows, active outputs and weights; `target` is looked at by "empirical" alone.
        key: of the labels that "sampled" draws.
        kind: see the top of this module.
    """
    keys = jax.random.split(key, len(batch.x))
    if model.layers is not None and all(layer.dense for layer in model.layers):
        return _by_products(model.layers, params, batch, keys, kind)
    rows = jax.vmap(lambda row, key: _of_row(model, params, row, key, kind))(batch, keys)
    return jax.tree.map(lambda f: jnp.tensordot(batch.weight, f, 1), rows)


def fisher_of_task(model: Model, params: Params, task: Task, key: Key, kind: FisherKind, samples: int | None) -> Params:
    """The mean over `samples` rows of a task drawn without replacement, or over all of them."""
    of_batch = lambda batch, key: fisher(model, params, batch, key, kind)
    return mean_of_task(of_batch, params, task, key, samples)


def mean_of_task(
    function: Callable[[Batch, Key], PyTree], like: PyTree, task: Task, key: Key, samples: int | None
) -> PyTree:
    """The mean of a weighted sum over rows, function(batch, key) with a result like `like`, over rows of a task.

    Rows are taken in chunks: memory does not grow with the task.
    """
    wanted = task.rows_max if samples is None else min(samples, task.rows_max)
    order_key, label_key = jax.random.split(key)
    chunks = -(-wanted // CHUNK)

    place = jnp.arange(chunks * CHUNK, dtype=jnp.int32).reshape(chunks, CHUNK)
    order = shuffled(order_key, jnp.minimum(place, task.count - 1), task.count)
    counts = (place < wanted) & (place < task.count)

    def add_chunk(total, chunk):
        i, order, counts = chunk
        batch = task.rows(order)
        batch = batch._replace(weight=counts.astype(batch.weight.dtype))
        return trees.add(total, function(batch, jax.random.fold_in(label_key, i))), None

    numbers = jnp.arange(chunks, dtype=jnp.int32)
    total = lax.scan(add_chunk, trees.zeros_like(like), (numbers, order, counts))[0]
    rows = jnp.minimum(jnp.int32(wanted), task.count)
    return jax.tree.map(lambda f: f / jnp.maximum(rows, 1).astype(f.dtype), total)


def check_kind(kind: str) -> None:
    """Raise unless the kind is one of the three."""
    if kind not in get_args(FisherKind):
        raise ValueError(f'fisher must be "exact", "sampled" or "empirical", got {kind!r}.')


def _label_weights(logits: Float[Array, "k"], row: Batch, key: Key, kind: FisherKind) -> Float[Array, "k"]:
    """How much each label counts: p, a one-hot draw from p, or the row's target."""
    if kind == "empirical":
        return jnp.where(row.active, row.target, 0)
    p = probabilities(logits, row.active)
    if kind == "exact":
        return p
    drawn: Int[Array, ""] = jax.random.categorical(key, jnp.where(row.active, logits, -jnp.inf))
    return jax.nn.one_hot(drawn, logits.shape[0], dtype=p.dtype)


def _score(logits: Float[Array, "k"], row: Batch, label: Int[Array, ""]) -> Float[Array, "k"]:
    """∂ log p_label / ∂logits = e_label − p over the active outputs."""
    onehot = jax.nn.one_hot(label, logits.shape[0], dtype=logits.dtype)
    return jnp.where(row.active, onehot - probabilities(logits, row.active), 0)


def _of_row(model: Model, params: Params, row: Batch, key: Key, kind: FisherKind) -> Params:
    """Σ_y weight_y (∂ log p_y/∂θ)² of one row, one label at a time."""
    logits, pull = jax.vjp(lambda p: model.apply(p, row.x)[0], params)
    weights = _label_weights(logits, row, key, kind)

    def add_label(total, label):
        gradient = pull(_score(logits, row, label))[0]
        return jax.tree.map(lambda t, g: t + weights[label] * jnp.square(g), total, gradient), None

    labels = jnp.arange(logits.shape[0], dtype=jnp.int32)
    return lax.scan(add_label, trees.zeros_like(params), labels)[0]


def _by_products(layers: tuple[Layer, ...], params: Params, batch: Batch, keys: Key, kind: FisherKind) -> Params:
    """One product per layer, from activities and squared errors."""

    def of_row(row: Batch, key: Key):
        sweep = lambda label: through_layers(
            layers, params, row.x, lambda logits: (logits[0], _score(logits, row, label))
        )
        labels = jnp.arange(row.target.shape[0], dtype=jnp.int32)
        found = sweep(labels[0])
        weights = _label_weights(found.logits, row, key, kind)
        squares = jax.vmap(lambda label: [jnp.square(e) for e in sweep(label).errors])(labels)
        return [jnp.ravel(h) for h in found.activations[:-1]], [jnp.tensordot(weights, s, 1) for s in squares]

    below, squares = jax.vmap(of_row)(batch, keys)
    weigh = lambda s: batch.weight[:, None] * s
    return tuple({"w": jnp.square(h).T @ weigh(s), "b": weigh(s).sum(0)} for h, s in zip(below, squares, strict=True))
