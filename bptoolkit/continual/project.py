"""Orthogonal gradient descent: move only where the answers to earlier tasks do not change, to first order.

Δθ ← Δθ − Σ_v (v · Δθ) v,     v an orthonormal basis of the gradients ∂ f_y(x)/∂θ at rows of earlier tasks
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from bptoolkit.continual.nesting import adding, require_learner, seen_in
from bptoolkit.continual.strengths import check_whole
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec, Task
from bptoolkit.learning.sampling import shuffled
from bptoolkit.types import Batch, Key, Memory, Params

__all__ = ["extend", "ogd", "project"]

DEPENDENT = 1e-6  # a direction is left out where less of it than this is new


class Directions(NamedTuple):
    """An orthonormal basis of what must not change; rows of zeros are free places."""

    inner: Memory
    basis: Float[Array, "directions weights"]


def ogd(per_task: int) -> Strategy:
    """Orthogonal gradient descent, by the gradients of each row's true output at `per_task` rows of every task.

    The update is projected, not the gradient, which is the same under plain gradient descent and holds under any
    optimiser.  Memory is tasks · per_task copies of the weights.

    Args:
        per_task: rows of each task, drawn without replacement; fewer where a task has fewer.

    Raises:
        ValueError: less than one row; a strategy inside that holds weights (`packnet`, `hat`, `random_features`): a
            projection that is undone in part is none.  Put around ogd, they do undo it.

    Reference: Farajtabar, Azizan, Mott & Li (2020), AISTATS, "OGD-GTL".
    """
    check_whole(per_task=per_task)

    def strategy(learner: Learner) -> Learner:
        require_learner(learner)
        if learner.free is not None:
            raise ValueError("ogd projects a step in all weights, got a strategy inside of it that holds some of them.")

        def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Directions:
            flat = ravel_pytree(params)[0]
            return Directions(inner, jnp.zeros((spec.tasks * per_task, flat.shape[0]), flat.dtype))

        def after_step(memory: Directions, before: Params, after: Params, opt_state, batch: Batch, key: Key):
            start, unravel = ravel_pytree(before)
            return unravel(start + project(memory.basis, ravel_pytree(after)[0] - start)), opt_state, memory

        def end_task(memory: Directions, params: Params, task: Task, key: Key) -> tuple[Params, Directions]:
            model = seen_in(learner, memory.inner, task.number)
            place = jnp.arange(per_task, dtype=jnp.int32)
            rows = task.rows(shuffled(key, jnp.minimum(place, task.count - 1), task.count))
            true = lambda p, row: jnp.sum(jnp.where(row.active, row.target * model.apply(p, row.x)[0], 0))
            slope = lambda row: ravel_pytree(jax.grad(true)(params, row))[0]
            new = jnp.where((place < task.count)[:, None], lax.map(slope, rows), 0)
            return params, memory._replace(basis=extend(memory.basis, new, task.number * per_task))

        return adding(learner, init, after_step=after_step, end_task=end_task)

    return strategy


def project(basis: Float[Array, "n w"], step: Float[Array, "w"]) -> Float[Array, "w"]:
    """What of a step is orthogonal to an orthonormal basis; taken twice, as rounding asks."""
    once = lambda v: v - basis.T @ (basis @ v)
    return once(once(step))


def extend(basis: Float[Array, "n w"], new: Float[Array, "m w"], first: Int[Array, ""]) -> Float[Array, "n w"]:
    """The basis with new directions from place `first` on, by Gram–Schmidt; what is not new stays zero."""

    def add(basis, one):
        number, v = one
        rest, size = project(basis, v), jnp.linalg.norm(v)
        norm = jnp.linalg.norm(rest)
        fresh = jnp.where(norm > DEPENDENT * size, rest / jnp.where(norm > 0, norm, 1), 0)
        return basis.at[first + number].set(fresh), None

    return lax.scan(add, basis, (jnp.arange(len(new), dtype=jnp.int32), new))[0]


EXAMPLES = {"ogd": ogd(2)}
