"""Strategies that hold weights back: a penalty for moving what earlier tasks need."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit import trees
from bptoolkit.continual.fisher import FisherKind, check_kind, fisher_of_task
from bptoolkit.learning.learner import Learner, StreamSpec, Task
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["ewc"]


class Anchored(NamedTuple):
    """Importance of every weight, and where it should stay."""

    inner: Memory
    strength: Float[Array, ""]
    fisher: Params  # Σ_t F_t
    anchor: Params  # Σ_t F_t θ_t / Σ_t F_t


def ewc(strength: Float[Array, ""] | float, *, fisher: FisherKind = "exact", samples: int | None = None):
    """Elastic weight consolidation: ½ · strength · Σ_t Σ_i F_t,i (θ_i − θ_t,i)² is added to the loss.

    One penalty per past task, as in the paper.  Their sum is a single quadratic, with importance Σ F_t and anchor
    Σ F_t θ_t / Σ F_t, so two copies of the weights suffice for any number of tasks.  F is that of the softmax over the
    active outputs, and a mean over rows: a strength of a library that sums over n rows is n times smaller.

    The pull is stiff: plain gradient descent needs rate · strength · F < 2.

    Args:
        strength: at least 0; may be traced.
        fisher: "exact" (all labels, by their probability), "sampled" (one label drawn) or "empirical" (the true one).
        samples: rows of the task that F is taken over; all if left out.

    Raises:
        ValueError: a negative strength, fewer than one sample, an unknown kind.

    Reference: Kirkpatrick et al. (2017), PNAS 114; Huszár (2018), PNAS 115, on the sum of penalties.
    """
    if isinstance(strength, int | float) and not strength >= 0:
        raise ValueError(f"strength must be at least 0, got {strength}. Take 0 for no penalty.")
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}. Leave it out for all rows.")
    check_kind(fisher)

    def strategy(learner: Learner) -> Learner:
        def init(params: Params, spec: StreamSpec, key: Key) -> Anchored:
            pull = jnp.asarray(strength, jnp.result_type(float))
            return Anchored(learner.init(params, spec, key), pull, trees.zeros_like(params), params)

        def gradient(memory: Anchored, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Anchored]:
            grads, info, inner = learner.gradient(memory.inner, params, batch, key)
            pull = jax.tree.map(
                lambda f, p, a: memory.strength.astype(p.dtype) * f * (p - a), memory.fisher, params, memory.anchor
            )
            return trees.add(grads, pull), info, memory._replace(inner=inner)

        def after_step(memory: Anchored, before, after, opt_state, batch, key):
            params, opt_state, inner = learner.after_step(memory.inner, before, after, opt_state, batch, key)
            return params, opt_state, memory._replace(inner=inner)

        def end_task(memory: Anchored, params: Params, task: Task, key: Key) -> tuple[Params, Anchored]:
            inner_key, fisher_key = jax.random.split(key)
            params, inner = learner.end_task(memory.inner, params, task, inner_key)
            new = fisher_of_task(learner.model, params, task, fisher_key, fisher, samples)
            total = trees.add(memory.fisher, new)
            anchor = jax.tree.map(_weighted, memory.fisher, memory.anchor, new, params)
            return params, Anchored(inner, memory.strength, total, anchor)

        return learner._replace(
            init=init,
            gradient=gradient,
            after_step=after_step,
            end_task=end_task,
            predict=lambda memory, params, batch: learner.predict(memory.inner, params, batch),
        )

    return strategy


def _weighted(f: Array, a: Array, g: Array, b: Array) -> Array:
    """(f a + g b)/(f + g), written as a step from a, so that equal anchors stay bit-identical; b where both are 0."""
    share = jnp.where(f + g > 0, g / jnp.where(f + g > 0, f + g, 1), 1)
    return a + share * (b - a)
