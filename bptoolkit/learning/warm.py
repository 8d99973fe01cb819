"""Recurrent backpropagation that begins where it ended: z* and λ of each row are the start of its next settling.

Between two updates of small rate both move little, so that few steps are left; what is solved, and to which tolerance,
stays the same.  Rows are known by `Batch.index`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit import trees
from bptoolkit.counts import check_whole
from bptoolkit.fixed_point import Status
from bptoolkit.learning.learner import Learner, StreamSpec, bare_learner
from bptoolkit.learning.losses import Loss, check_loss, cross_entropy, mean_loss
from bptoolkit.learning.rules import probes_of, told_by
from bptoolkit.models.equilibrium import settling
from bptoolkit.types import Batch, Info, Key, Model, Params, PyTree, State

__all__ = ["Starts", "warm_backprop"]


class Starts(NamedTuple):
    """What each row of the data set settled to last; zeros where it has not been seen."""

    z: State  # leaves (rows, …)
    adjoint: State  # λ of the row's own loss


def warm_backprop(model: Model, rows: int, loss: Loss = cross_entropy) -> Learner:
    """`backprop` of a model that settles, each settling from the last z* and λ of the same row.

    The gradient is that of `backprop` to the tolerance of the relaxation.  It pays where a row comes back before the
    weights have moved far: small data sets, full batches, small rates.  Where there are several fixed points a row
    stays with its own.  A settling that failed is not remembered; `predict` settles from zero.  The memory holds two
    states for each row, and for each seed.

    Args:
        model: an `equilibrium(cell, implicit(…))`.  Starts of λ are of no use to an adjoint that takes none: a series,
            `dense()`, or `exact()` for states of up to 8 values.
        rows: of the data set, `len(dataset.train.y)`; a row whose index is not below it, or is negative, settles from
            zero.
        loss: as for `backprop`.

    Raises:
        ValueError: a model that does not settle; something else than a loss; rows that are no whole number of at
            least 1.
    """
    if not isinstance(model, Model):
        raise ValueError(f"warm_backprop needs a Model, got {type(model).__name__}. Make one of a cell by equilibrium.")
    if model.cell is None or model.cell.settle is None:
        raise ValueError("warm_backprop needs a model that settles, got one without cell. Take backprop(model).")
    check_loss(loss)
    check_whole(1, "Take len(dataset.train.y).", rows=rows)
    cell, settle = model.cell, model.cell.settle

    def init(params: Params, spec: StreamSpec, key: Key) -> Starts:
        del params, spec, key
        empty = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), cell.state)
        return Starts(empty, empty)

    def gradient(memory: Starts, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Starts]:
        del key
        place = jnp.where(batch.index >= 0, batch.index, rows)
        known = jax.tree.map(lambda leaf: leaf.at[place].get(mode="fill", fill_value=0), memory)
        share = _shares(batch)
        start = Starts(known.z, _scaled(known.adjoint, share))
        inputs = (params, probes_of(model, batch), trees.zeros_like(known.z))
        (value, (info, z)), found = jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(*inputs, start, batch)
        grads, probes, adjoint = found
        info = info._replace(loss=value, backward=told_by(probes), weight=batch.weight)
        own = _scaled(adjoint, jnp.where(share > 0, 1 / jnp.where(share > 0, share, 1), 0))
        forward = info.forward.status == Status.CONVERGED
        backward = forward & (share > 0) & (info.backward.status == Status.CONVERGED)
        return (
            grads,
            info,
            Starts(_kept(memory.z, z, batch, forward, rows), _kept(memory.adjoint, own, batch, backward, rows)),
        )

    def objective(params, probes, push, start: Starts, batch: Batch):
        one = lambda x, probe, push, start: settle(params, x, probe, z0=start.z, start=start.adjoint, push=push)
        solution = jax.vmap(one)(batch.x, probes, push, start)
        logits = jax.vmap(cell.readout, (None, 0))(params, solution.value)
        return mean_loss(loss, logits, batch), (Info(forward=settling(solution)), solution.value)

    return bare_learner(model, gradient, loss)._replace(init=init)


def _shares(batch: Batch) -> Float[Array, "b"]:
    """The weight of each row's own loss in that of the batch."""
    weight = jnp.maximum(batch.weight, 0)
    total = jnp.sum(weight)
    return weight / jnp.where(total > 0, total, 1)


def _scaled(tree: State, factor: Float[Array, "b"]) -> State:
    """Each row times its factor."""
    each = lambda leaf: factor.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype) * leaf
    return jax.tree.map(each, tree)


def _kept(memory: State, new: State, batch: Batch, good: Array, rows: int) -> State:
    """The memory with the rows that settled written to it; others, and indices beyond it, change nothing."""
    place = jnp.where(good & (batch.index >= 0), batch.index, rows)
    return jax.tree.map(lambda old, leaf: old.at[place].set(leaf.astype(old.dtype), mode="drop"), memory, new)
