"""Strategies that keep a net able to learn: pull it back to its start, shake it, or renew units that do little.

A renewed unit gets first weights to enter by, zero weights to leave by, and an optimiser state that forgets it.  What a
strategy inside holds (`packnet`, `hat`, `random_features`) is left alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bptoolkit import trees
from bptoolkit.continual.activity import mean_activity
from bptoolkit.continual.gates import Gates, entering, hidden_units, leaving
from bptoolkit.continual.nesting import adding
from bptoolkit.continual.penalty import penalty
from bptoolkit.continual.strengths import Number, check_nonnegative, check_share, check_whole, traced
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec
from bptoolkit.types import Batch, Key, Memory, Model, Params, PyTree

__all__ = ["continual_backprop", "forget_moments", "l2_init", "redo", "renew", "shrink_and_perturb"]

Units = tuple[Bool[Array, "units"], ...]  # one array a hidden layer


def l2_init(strength: Number) -> Strategy:
    """Regenerative regularisation: strength · ‖θ − θ_0‖² is added to the loss, without a ½; θ_0 the first weights.

    Args:
        strength: at least 0; may be traced.

    Raises:
        ValueError: a negative strength.

    Reference: Kumar, Marklund & Van Roy (2023), arXiv:2308.11958, "L2 Init".
    """
    everywhere = lambda params: jax.tree.map(jnp.ones_like, params)
    return penalty(strength, None, factor=2.0, first=everywhere)


class Shaken(NamedTuple):
    """What the weights are multiplied with, and first weights with, before each task but the first of a net."""

    inner: Memory
    shrink: Float[Array, ""]
    perturb: Float[Array, ""]
    begun: Bool[Array, ""]  # whether this net has had its first task


def shrink_and_perturb(shrink: Number = 0.4, perturb: Number = 0.1) -> Strategy:
    """Before each task but a net's first, θ ← shrink · θ + perturb · θ′, θ′ first weights drawn anew.

    The paper's noise is Gaussian; first weights have the scale that each layer was made for.

    Args:
        shrink: in [0, 1]; may be traced.  1 with perturb 0 is naive.
        perturb: at least 0; may be traced.

    Raises:
        ValueError: a shrink outside [0, 1], a negative perturb.

    Reference: Ash & Adams (2020), NeurIPS, "On warm-starting neural network training".
    """
    check_share("shrink", shrink)
    check_nonnegative("perturb", perturb)

    def strategy(learner: Learner) -> Learner:
        def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Shaken:
            return Shaken(inner, traced(shrink), traced(perturb), jnp.bool_(False))

        def start_task(memory: Shaken, params: Params, task: Int[Array, ""], key: Key) -> tuple[Params, Shaken]:
            shaken = trees.add(trees.scale(memory.shrink, params), trees.scale(memory.perturb, learner.model.init(key)))
            return trees.choose(memory.begun, shaken, params), memory._replace(begun=jnp.bool_(True))

        return adding(learner, init, start_task=start_task, looks_on=False)

    return strategy


class Watched(NamedTuple):
    """Steps made, and what is known of every hidden unit."""

    inner: Memory
    step: Int[Array, ""]
    threshold: Float[Array, ""]


def redo(threshold: Number = 0.025, every: int = 1000) -> Strategy:
    """ReDo: every so many steps, renew the units whose score on the batch is at most the threshold.

        score_i = E|h_i| / mean_k E|h_k|,     over the units k of the same layer; a cell's state is one layer

    Threshold 0 renews only units that are exactly silent, which changes no answer to the batch.

    Args:
        threshold: τ, at least 0; may be traced.
        every: steps between two renewals.

    Raises:
        ValueError: a negative threshold, less than one step; a model that does not show its hidden units.

    Reference: Sokar, Agarwal, Castro & Evci (2023), ICML.
    """
    check_nonnegative("threshold", threshold)
    check_whole(every=every)

    def strategy(learner: Learner) -> Learner:
        def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Watched:
            hidden_units(learner.model, params, "redo")
            return Watched(inner, jnp.int32(0), traced(threshold))

        def after_step(memory: Watched, before: Params, after: Params, opt_state, batch: Batch, key: Key):
            step = memory.step + 1
            activity = mean_activity(learner.model, after, batch)
            quiet = lambda a: a <= memory.threshold.astype(a.dtype) * jnp.mean(a)
            units = tuple(quiet(a) & (step % every == 0) for a in activity)
            params, touched = renew(learner.model, after, learner.model.init(key), units)
            return params, forget_moments(opt_state, params, touched), memory._replace(step=step)

        return adding(learner, init, after_step=after_step, looks_on=False)

    return strategy


class Judged(NamedTuple):
    """Utility and age of every hidden unit, and how many are due to be renewed in each layer."""

    inner: Memory
    utility: Gates
    age: Gates
    due: tuple[Float[Array, ""], ...]
    rate: Float[Array, ""]


def continual_backprop(rate: Number = 1e-4, *, maturity: int = 100, decay: Number = 0.99) -> Strategy:
    """Continual backpropagation: all the time, renew a small share of the mature units that contribute least.

        u_i ← η u_i + (1 − η) · E|h_i| · Σ_k |w_ik|,     û_i = u_i / (1 − η^age)

    over the weights that leave unit i.  Each layer gathers rate · (its mature units) at every step; whenever that
    exceeds 1, its mature unit of the smallest û is renewed, and is young again.

    Args:
        rate: ρ, units renewed a step and mature unit, in [0, 1]; may be traced.  0 is naive.
        maturity: steps in which a unit is safe.
        decay: η in [0, 1); may be traced.

    Raises:
        ValueError: a number out of its range; a model that does not show its hidden units.

    Reference: Dohare, Hernandez-Garcia, Lan, Rahman, Mahmood & Sutton (2024), Nature 632, algorithm 1.
    """
    check_share("rate", rate)
    check_whole(0, maturity=maturity)
    check_share("decay", decay, but=1)

    def strategy(learner: Learner) -> Learner:
        model = learner.model

        def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Judged:
            zeros = tuple(jnp.zeros(n) for n in hidden_units(model, params, "continual_backprop"))
            return Judged(inner, zeros, zeros, tuple(jnp.zeros(()) for _ in zeros), traced(rate))

        def after_step(memory: Judged, before: Params, after: Params, opt_state, batch: Batch, key: Key):
            now = tuple(a * w for a, w in zip(mean_activity(model, after, batch), outgoing(model, after), strict=True))
            age = jax.tree.map(lambda a: a + 1, memory.age)
            utility = jax.tree.map(lambda u, n: decay * u + (1 - decay) * n, memory.utility, now)
            found = [
                _select(u, a, d, memory.rate, maturity, decay) for u, a, d in zip(utility, age, memory.due, strict=True)
            ]
            units, due = tuple(f[0] for f in found), tuple(f[1] for f in found)
            params, touched = renew(model, after, model.init(key), units)
            young = lambda tree: jax.tree.map(lambda leaf, unit: jnp.where(unit, 0, leaf), tree, units)
            memory = memory._replace(utility=young(utility), age=young(age), due=due)
            return params, forget_moments(opt_state, params, touched), memory

        return adding(learner, init, after_step=after_step, looks_on=False)

    return strategy


def _select(utility, age, due, rate, maturity: int, decay: Number) -> tuple[Bool[Array, "units"], Float[Array, ""]]:
    """The one unit to be renewed, if one is due, and what remains due."""
    mature = age > maturity
    due = due + rate * jnp.sum(mature, dtype=due.dtype)
    corrected = utility / (1 - decay ** jnp.maximum(age, 1))
    least = jnp.argmin(jnp.where(mature, corrected, jnp.inf))
    renewed = (due > 1) & jnp.any(mature)
    return (jnp.arange(utility.shape[0]) == least) & renewed, jnp.where(renewed, due - 1, due)


def outgoing(model: Model, params: Params) -> Gates:
    """Σ_k |w_ik| over the weights that leave each hidden unit: the derivative of Σ |w| by the unit's gate."""
    sizes = jax.tree.map(jnp.abs, params)
    gates = tuple(jnp.ones(n, jax.tree.leaves(params)[0].dtype) for n in hidden_units(model, params))

    def total(gates: Gates) -> Float[Array, ""]:
        ways = leaving(model, params, gates)
        return jnp.sum(jnp.stack([jnp.vdot(s, w) for s, w in zip(*map(jax.tree.leaves, (sizes, ways)), strict=True)]))

    return jax.grad(total)(gates)


def renew(model: Model, params: Params, fresh: Params, units: Units) -> tuple[Params, PyTree]:
    """The units' weights anew: from `fresh` where they enter, zero where they leave; and which weights these are."""
    real = tuple((1 - u.astype(jax.tree.leaves(params)[0].dtype)) for u in units)
    enters = jax.tree.map(lambda gate: gate == 0, entering(model, params, real))
    leaves = jax.tree.map(lambda gate: gate == 0, leaving(model, params, real))
    choose = lambda p, f, e, o: jnp.where(o, 0, jnp.where(e, f, p))
    return jax.tree.map(choose, params, fresh, enters, leaves), jax.tree.map(jnp.logical_or, enters, leaves)


def forget_moments(opt_state: PyTree, params: Params, touched: PyTree) -> PyTree:
    """An optimiser state whose running means, whatever in it is shaped like params, are 0 at these weights."""
    shape = jax.tree.structure(params)
    sizes = [leaf.shape for leaf in jax.tree.leaves(params)]
    alike = lambda tree: jax.tree.structure(tree) == shape and [jnp.shape(x) for x in jax.tree.leaves(tree)] == sizes
    clear = lambda tree: jax.tree.map(lambda leaf, t: jnp.where(t, 0, leaf), tree, touched) if alike(tree) else tree
    return jax.tree.map(clear, opt_state, is_leaf=alike)


EXAMPLES = {
    "l2 to init": l2_init(0.1),
    "shrink and perturb": shrink_and_perturb(),
    "redo": redo(0.5, every=2),
    "continual backprop": continual_backprop(0.1, maturity=2),
}
