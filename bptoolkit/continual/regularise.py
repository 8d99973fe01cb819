"""Strategies that hold weights back: a penalty for moving what earlier tasks need.

Each adds a quadratic in the weights to the loss; they differ in how important a weight is.  Every docstring says
whether its penalty carries a ½ and whether importances are sums or means over rows; `convert` translates.
"""

import jax
import jax.numpy as jnp

from bptoolkit import trees
from bptoolkit.continual.fisher import FisherKind, check_kind, fisher_of_task, mean_of_task
from bptoolkit.continual.nesting import seen_in
from bptoolkit.continual.penalty import Anchored, penalty, pooled
from bptoolkit.continual.strengths import Number, check_positive, check_share, check_whole, traced
from bptoolkit.learning.learner import Strategy
from bptoolkit.types import Batch, Model, Params

__all__ = ["ewc", "l2_anchor", "mas", "online_ewc", "output_sensitivity", "si"]


def l2_anchor(strength: Number) -> Strategy:
    """½ · strength · ‖θ − θ*‖² is added to the loss, θ* where the last task ended; nothing in the first task.

    Every weight is equally important: what EWC must beat.

    Args:
        strength: at least 0; may be traced.

    Raises:
        ValueError: a negative strength.

    Reference: Kirkpatrick et al. (2017), PNAS 114, "L2".
    """

    def consolidate(learner, memory: Anchored, params, task, key):
        return memory._replace(importance=jax.tree.map(jnp.ones_like, params), anchor=params)

    return penalty(strength, consolidate)


def ewc(strength: Number, *, fisher: FisherKind = "exact", samples: int | None = None) -> Strategy:
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
    _check_fisher(fisher, samples)

    def consolidate(learner, memory: Anchored, params, task, key):
        model = seen_in(learner, memory.inner, task.number)
        return pooled(memory, fisher_of_task(model, params, task, key, fisher, samples), params)

    return penalty(strength, consolidate)


def online_ewc(
    strength: Number, gamma: Number = 1.0, *, fisher: FisherKind = "exact", samples: int | None = None
) -> Strategy:
    """Online EWC: ½ · strength · γ Σ_i F̃_i (θ_i − θ*_i)² is added, with F̃ ← γ F̃ + F and θ* the end of the last task.

    γ multiplies the newest F too, as in the paper's equation.  F as in `ewc`.

    Args:
        strength: at least 0; may be traced.
        gamma: in [0, 1], how much of the past stays; may be traced.
        fisher, samples: as in `ewc`.

    Raises:
        ValueError: a negative strength, γ outside [0, 1], fewer than one sample, an unknown kind.

    Reference: Schwarz et al. (2018), ICML, "Progress & Compress", section 3.
    """
    _check_fisher(fisher, samples)
    check_share("gamma", gamma)

    def consolidate(learner, memory: Anchored, params, task, key):
        model = seen_in(learner, memory.inner, task.number)
        new = fisher_of_task(model, params, task, key, fisher, samples)
        kept = trees.add(memory.path, new)  # F̃_{t−1} was already multiplied by γ
        importance = trees.scale(traced(gamma), kept)
        return memory._replace(importance=importance, anchor=params, path=importance)

    return penalty(strength, consolidate, start=trees.zeros_like)


def si(strength: Number, *, damping: float = 0.1, positive: bool = False) -> Strategy:
    """Synaptic intelligence: strength · Σ_i Ω_i (θ_i − θ*_i)² is added to the loss, without a ½.

        Ω_i = Σ_tasks ω_i / (Δ_i² + ξ),     ω_i = −Σ_steps g_i (θ_i after − θ_i before),     Δ the way of the task

    g is the gradient of the total loss, this penalty included, and whatever strategies inside add; what is added
    outside of `si` it does not see.  Ω is traced along the way: no pass over the data, no loss is differentiated again.

    Args:
        strength: the paper's c, at least 0; may be traced.
        damping: ξ > 0, keeps Ω bounded where a weight hardly moved.
        positive: count ω below 0 as 0, as some libraries do; the paper and van de Ven's code do not.

    Raises:
        ValueError: a negative strength, a damping that is not positive.

    Reference: Zenke, Poole & Ganguli (2017), ICML, equations 4 and 5.
    """
    check_positive("damping", damping)

    def along(memory: Anchored, before, after, batch):
        return jax.tree.map(lambda w, g, a, b: w - g * (a - b), memory.path, memory.slope, after, before)

    def consolidate(learner, memory: Anchored, params, task, key):
        def grown(total, w, p, start):
            w = jnp.maximum(w, 0) if positive else w
            return total + w / (jnp.square(p - start) + traced(damping).astype(p.dtype))

        importance = jax.tree.map(grown, memory.importance, memory.path, params, memory.anchor)
        return memory._replace(importance=importance, anchor=params, path=trees.zeros_like(params))

    return penalty(strength, consolidate, factor=2.0, start=trees.zeros_like, along=along)


def mas(strength: Number, *, samples: int | None = None) -> Strategy:
    """Memory-aware synapses: strength · Σ_i Ω_i (θ_i − θ*_i)² is added to the loss, without a ½.

        Ω = Σ_tasks mean over rows of |∂ ‖f(x)‖² / ∂θ|,     f the outputs in play, before the softmax

    Absolute values are taken row by row, as in the paper; code that takes them of a batch's mean finds less.  Labels
    play no part.

    Args:
        strength: at least 0; may be traced.
        samples: rows of the task that Ω is taken over; all if left out.

    Raises:
        ValueError: a negative strength, fewer than one sample.

    Reference: Aljundi et al. (2018), ECCV, equations 2 to 4.
    """
    _check_fisher("exact", samples)

    def consolidate(learner, memory: Anchored, params, task, key):
        model = seen_in(learner, memory.inner, task.number)
        new = mean_of_task(lambda batch, key: output_sensitivity(model, params, batch), params, task, key, samples)
        return memory._replace(importance=trees.add(memory.importance, new), anchor=params)

    return penalty(strength, consolidate, factor=2.0)


def output_sensitivity(model: Model, params: Params, batch: Batch) -> Params:
    """Σ_r w_r |∂ ‖f(x_r)‖² / ∂θ| over the rows of a batch, f the active outputs; a tree like params."""

    def of_row(row: Batch) -> Params:
        norm = lambda p: jnp.sum(jnp.square(jnp.where(row.active, model.apply(p, row.x)[0], 0)))
        return jax.tree.map(jnp.abs, jax.grad(norm)(params))

    rows = jax.vmap(of_row)(batch)
    return jax.tree.map(lambda leaf: jnp.tensordot(batch.weight, leaf, 1), rows)


def _check_fisher(fisher: str, samples: int | None) -> None:
    check_whole(samples=samples)
    check_kind(fisher)


EXAMPLES = {
    "l2 to anchor": l2_anchor(0.1),
    "ewc": ewc(10.0),
    "online ewc": online_ewc(10.0, 0.9),
    "si": si(1.0),
    "mas": mas(0.1),
}
