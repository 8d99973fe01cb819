"""One quadratic that holds weights back: λ/2 · Σ_i Ω_i (θ_i − a_i)², with whatever Ω and a a strategy accumulates.

Its pull, λ Ω ⊙ (θ − a), is added to the gradient.  It is stiff: plain gradient descent needs rate · λ · Ω < 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit import trees
from bptoolkit.continual.nesting import adding
from bptoolkit.continual.strengths import check_nonnegative, traced
from bptoolkit.learning.learner import Learner, Strategy, Task
from bptoolkit.types import Batch, Key, Memory, Params, PyTree

__all__ = ["Anchored", "penalty", "pooled"]


class Anchored(NamedTuple):
    """Importance of every weight, where it should stay, and what a strategy keeps to find out."""

    inner: Memory
    strength: Float[Array, ""]  # λ
    importance: Params  # Ω
    anchor: Params  # a
    path: PyTree = ()
    slope: PyTree = ()  # the gradient of this step, on its way to `after_step`


def penalty(
    strength: Float[Array, ""] | float,
    consolidate: Callable[[Learner, Anchored, Params, Task, Key], Anchored] | None,
    *,
    factor: float = 1.0,
    first: Callable[[Params], Params] = trees.zeros_like,
    start: Callable[[Params], PyTree] | None = None,
    along: Callable[[Anchored, Params, Params, Batch], PyTree] | None = None,
) -> Strategy:
    """The strategy that adds factor · strength · Ω ⊙ (θ − a) to the gradient.

    Args:
        strength: at least 0; may be traced.
        consolidate: of (learner inside, memory, params, task, key): importance and anchor after a task; None where
            they stay as they were first.
        factor: 1 where the penalty carries a ½, 2 where it does not.
        first: of the first params: the importance in the first task, around those params.
        start: of the first params: the path.
        along: of (memory, params before, after, batch): the path after a step; memory.slope is that step's gradient.

    Raises:
        ValueError: a negative strength.
    """
    check_nonnegative("strength", strength)

    def strategy(learner: Learner) -> Learner:
        def init(inner, params, spec, key):
            path = () if start is None else start(params)
            slope = () if along is None else trees.zeros_like(params)
            pull = traced(factor) * traced(strength)
            return Anchored(inner, pull, first(params), params, path, slope)

        def adjust(memory: Anchored, params, grads, batch):
            pull = jax.tree.map(
                lambda f, p, a: memory.strength.astype(p.dtype) * f * (p - a),
                memory.importance,
                params,
                memory.anchor,
            )
            grads = trees.add(grads, pull)
            return grads, memory if along is None else memory._replace(slope=grads)

        def after_step(memory: Anchored, before, after, opt_state, batch, key):
            path = memory.path if along is None else along(memory, before, after, batch)
            return after, opt_state, memory._replace(path=path)

        def end_task(memory, params, task, key):
            assert consolidate is not None
            return params, consolidate(learner, memory, params, task, key)

        return adding(
            learner,
            init,
            adjust=adjust,
            after_step=None if along is None else after_step,
            end_task=None if consolidate is None else end_task,
        )

    return strategy


def pooled(memory: Anchored, new: Params, params: Params) -> Anchored:
    """With one more penalty, of importance `new` around params: Σ_t Ω_t, and the Ω-weighted mean of the anchors.

    The sum of quadratics is one quadratic, so two copies of the weights suffice for any number of tasks.
    """
    anchor = jax.tree.map(_weighted, memory.importance, memory.anchor, new, params)
    return memory._replace(importance=trees.add(memory.importance, new), anchor=anchor)


def _weighted(f: Array, a: Array, g: Array, b: Array) -> Array:
    """(f a + g b)/(f + g), written as a step from a, so that equal anchors stay bit-identical; b where both are 0."""
    share = jnp.where(f + g > 0, g / jnp.where(f + g > 0, f + g, 1), 1)
    return a + share * (b - a)
