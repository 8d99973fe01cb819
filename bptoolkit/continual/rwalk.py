"""Riemannian walk: EWC's Fisher information and SI's path integral, the path measured in the Fisher's own metric."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bptoolkit import trees
from bptoolkit.continual.fisher import FisherKind, check_kind, fisher
from bptoolkit.continual.nesting import seen_in
from bptoolkit.continual.penalty import Anchored, penalty
from bptoolkit.continual.strengths import Number, check_nonnegative, check_positive, check_share, check_whole
from bptoolkit.learning.learner import Learner, Strategy
from bptoolkit.types import Batch, Key, Params

__all__ = ["rwalk"]


class Walk(NamedTuple):
    """What is gathered on the way."""

    fisher: Params  # running mean F
    score: Params  # s, of earlier tasks
    path: Params  # of this task
    fall: Params  # −Σ g Δθ since the last stop
    start: Params  # θ at the last stop
    step: Int[Array, ""]  # of this task
    tasks: Int[Array, ""]  # behind


def rwalk(
    strength: Number, *, decay: float = 0.9, every: int = 10, damping: float = 1e-3, fisher: FisherKind = "empirical"
) -> Strategy:
    """RWalk: strength · Σ_i (F̄_i + s̄_i)(θ_i − θ*_i)² is added to the loss, without a ½.

        F ← α F_batch + (1 − α) F at every step,
        s_task = Σ over stretches of `every` steps of max(0, −Σ g Δθ) / (½ F (θ_end − θ_start)² + ξ),
        s ← ½ (s + s_task) after each task but the first, whose s is s_task

    Bars: divided by the largest of all weights, so that both are in [0, 1].  F_batch is a mean of per-example squares;
    the authors' code squares the batch's mean gradient.  It costs about one more gradient a step.

    Args:
        strength: λ, at least 0; may be traced.
        decay: α in [0, 1], the weight of the newest batch.
        every: steps of a stretch, at least 1; the last one of a task may be shorter.
        damping: ξ > 0.
        fisher: as in `ewc`; "sampled" would need luck that this strategy has not, so it is refused.

    Raises:
        ValueError: a number out of its range; a Fisher that is drawn.

    Reference: Chaudhry, Dokania, Ajanthan & Torr (2018), ECCV, equations 5 to 8.
    """
    check_nonnegative("strength", strength)
    check_share("decay", decay)
    check_positive("damping", damping)
    check_kind(fisher)
    check_whole(every=every)
    if fisher == "sampled":
        raise ValueError(f'rwalk needs fisher "exact" or "empirical", got {fisher!r}.')

    def start(params: Params) -> Walk:
        zeros = trees.zeros_like(params)
        return Walk(zeros, zeros, zeros, zeros, params, jnp.int32(0), jnp.int32(0))

    def scored(fall: Params, f: Params, now: Params, start: Params) -> Params:
        """What a stretch adds to the path."""
        share = lambda w, f, a, s: jnp.maximum(w, 0) / (f * jnp.square(a - s) / 2 + damping)
        return jax.tree.map(share, fall, f, now, start)

    def strategy(learner: Learner) -> Learner:
        def along(memory: Anchored, before: Params, after: Params, batch: Batch) -> Walk:
            walk: Walk = memory.path
            model = seen_in(learner, memory.inner, batch.task[0])
            total = jnp.maximum(jnp.sum(batch.weight), jnp.finfo(batch.weight.dtype).tiny)
            new = _fisher_of_batch(model, before, batch._replace(weight=batch.weight / total), fisher)
            f = jax.tree.map(lambda old, n: decay * n + (1 - decay) * old, walk.fisher, new)
            fall = jax.tree.map(lambda w, g, a, b: w - g * (a - b), walk.fall, memory.slope, after, before)
            step = walk.step + 1
            stop = step % every == 0

            grown = trees.add(walk.path, scored(fall, f, after, walk.start))
            path = trees.choose(stop, grown, walk.path)
            fall = jax.tree.map(lambda w: jnp.where(stop, 0, w), fall)
            return Walk(f, walk.score, path, fall, trees.choose(stop, after, walk.start), step, walk.tasks)

        return penalty(strength, consolidate, factor=2.0, start=start, along=along)(learner)

    def consolidate(learner: Learner, memory: Anchored, params: Params, task, key: Key) -> Anchored:
        walk: Walk = memory.path
        path = trees.add(walk.path, scored(walk.fall, walk.fisher, params, walk.start))  # the stretch under way
        score = jax.tree.map(lambda s, p: jnp.where(walk.tasks > 0, (s + p) / 2, p), walk.score, path)
        importance = trees.add(_to_one(walk.fisher), _to_one(score))
        zeros = trees.zeros_like(params)
        rest = Walk(walk.fisher, score, zeros, zeros, params, jnp.int32(0), walk.tasks + 1)
        return memory._replace(importance=importance, anchor=params, path=rest)

    return strategy


def _fisher_of_batch(model, params: Params, batch: Batch, kind: FisherKind) -> Params:
    return fisher(model, params, batch, jax.random.key(0), kind)  # a kind that draws nothing


def _to_one(tree: Params) -> Params:
    """Divided by the largest entry of all; as it is where all are 0."""
    largest: Array = jnp.max(jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(tree)]))
    return jax.tree.map(lambda leaf: leaf / jnp.where(largest > 0, largest, 1).astype(leaf.dtype), tree)


EXAMPLES = {"rwalk": rwalk(0.1, every=2)}
