"""Strategies that give each task units or weights of its own; the net must be told the task when it predicts.

XdG gates hidden units by tasks; PackNet gives each task weights.  (HAT, which learns its gates, is in `hat`.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bptoolkit.continual.gates import Gates, hidden_units, scale_units
from bptoolkit.continual.nesting import adding, require_own_rows
from bptoolkit.continual.readout import readout
from bptoolkit.continual.strengths import Number, check_share, traced
from bptoolkit.continual.views import require_inside, require_told, through_view
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec
from bptoolkit.types import Batch, Key, Memory, Params, PyTree

__all__ = ["packnet", "xdg"]

ROUNDING = 1e-6  # by so much relatively may share · units fall short of the whole number that it is


class Gated(NamedTuple):
    """Which hidden units are on in each task: 0 or 1, (tasks, units) for each layer."""

    inner: Memory
    gates: Gates


def xdg(share: Number = 0.8) -> Strategy:
    """Context-dependent gating: in each task a random share of every hidden layer's units is silent.

        h ← g_task ⊙ h,     ⌊share · units⌋ entries of g are 0, drawn once for each task and layer

    Tasks then share only the units that are on in both.  A batch that mixes tasks (replayed rows) is answered task by
    task, each row under the gates of its own.  A silent unit's output is exactly 0; the authors of the published
    table silence what enters a unit but leave its bias, so there it is relu(b).  Weights around silent units have no
    gradient, but an optimiser with momentum may still move them a little.

    Args:
        share: of units that are silent, in [0, 1); may be traced.  The paper takes 0.8, van de Ven et al. (2022) 0.9.

    Raises:
        ValueError: a share outside [0, 1); a stream that does not tell the task at test time; a model that does not
            show its hidden units; a layer that would be silent as a whole; a penalty or rehearsal inside.

    Penalties go around it, `si(…)(xdg(…)(rule))`, which is how the paper stabilises the weights that tasks share, and
    so does rehearsal; inside of it their rows would pass the current task's gates.

    Reference: Masse, Grant & Freedman (2018), PNAS 115; van de Ven, Tuytelaars & Tolias (2022), Nature MI 4.
    """
    check_share("share", share, but=1)

    def strategy(learner: Learner) -> Learner:
        require_inside(learner, "xdg")

        def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Gated:
            require_told(spec, "xdg")
            units = hidden_units(learner.model, params, "xdg")
            keys = jax.random.split(key, len(units))
            return Gated(inner, tuple(_draw_gates(k, spec.tasks, n, share) for k, n in zip(keys, units, strict=True)))

        def own_view(memory: Gated, params: Params, task: Int[Array, ""]) -> Params:
            gates = tuple(g[task] for g in memory.gates)
            return scale_units(learner.model, params, gates, gates)

        return through_view(adding(learner, init, looks_on=False), learner, own_view)

    return strategy


def _draw_gates(key: Key, tasks: int, units: int, share: Number) -> Float[Array, "tasks units"]:
    silent = jnp.floor(traced(share) * units * (1 + ROUNDING)).astype(jnp.int32)
    template = (jnp.arange(units, dtype=jnp.int32) >= silent).astype(jnp.result_type(float))
    return jax.vmap(lambda k: jax.random.permutation(k, template))(jax.random.split(key, tasks))


class Packed(NamedTuple):
    """Which task every weight belongs to."""

    inner: Memory
    owner: PyTree  # like params: 0 free, t + 1 of task t
    out: PyTree  # True for weights of the readout
    current: Int[Array, ""]  # −1 before the first
    step: Int[Array, ""]  # of this task
    prune_at: Int[Array, ""]
    tasks: Int[Array, ""]


def packnet(keep: Number | None = None, *, retrain: Number = 1 / 3) -> Strategy:
    """PackNet: train on the free weights, keep the largest of them for the task, free the others, train on.

    After (1 − retrain) of a task's steps, in every weight matrix the largest `keep` of its free weights by |w| become
    the task's, the others become 0; the rest of the steps trains the task's own.  What belongs to a task is never
    changed again, and in a task only weights of this and earlier tasks are seen, and until it prunes the free ones that
    it trains, so nothing is forgotten, bit for bit, whatever renews weights inside or outside.  Biases belong to the
    first task, each output's weights to the task it is active in.

    Args:
        keep: share of the free weights that a task keeps, in (0, 1]; if left out 1/(tasks to come, this one
            included), so that all tasks get equally many.  The paper takes 0.5 or 0.25.  May be traced.
        retrain: share of the steps after pruning, in [0, 1); may be traced.

    Raises:
        ValueError: a share out of its range; a stream that does not tell the task at test time; a model that does not
            show its hidden units; a penalty or rehearsal inside.

    Reference: Mallya & Lazebnik (2018), CVPR.
    """
    if keep is not None:
        check_share("keep", keep, but=0)
    check_share("retrain", retrain, but=1)

    def strategy(learner: Learner) -> Learner:
        require_inside(learner, "packnet")
        require_own_rows(learner, "packnet")

        def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Packed:
            require_told(spec, "packnet")
            hidden_units(learner.model, params, "packnet")
            out = readout(learner.model, params, key)
            owner = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.int32), params)
            prune_at = jnp.maximum(jnp.round((1 - traced(retrain)) * spec.steps), 1).astype(jnp.int32)
            return Packed(inner, owner, out, jnp.int32(-1), jnp.int32(0), prune_at, jnp.int32(spec.tasks))

        def start_task(memory: Packed, params: Params, task: Int[Array, ""], key: Key):
            return params, memory._replace(current=task, step=jnp.int32(0))

        def free(memory: Packed, params: Params) -> PyTree:
            own = jnp.where(memory.step < memory.prune_at, 0, memory.current + 1)
            return jax.tree.map(lambda owner: owner == own, memory.owner)

        def after_step(memory: Packed, before, after, opt_state, batch: Batch, key):
            memory = memory._replace(step=memory.step + 1)
            share = 1 / (memory.tasks - memory.current).astype(jnp.result_type(float)) if keep is None else keep
            prune = lambda params, memory: _prune(params, memory, batch.active[0], share)
            params, memory = jax.lax.cond(
                memory.step == memory.prune_at, prune, lambda params, memory: (params, memory), after, memory
            )
            return params, opt_state, memory

        def own_view(memory: Packed, params: Params, task: Int[Array, ""]) -> Params:
            free = (memory.current < 0) | ((task == memory.current) & (memory.step < memory.prune_at))

            def seen(p, owner, out):
                shown = _shared(p, out) | ((owner > 0) & (owner <= task + 1)) | ((owner == 0) & free)
                return jnp.where(shown, p, 0)

            return jax.tree.map(seen, params, memory.owner, memory.out)

        outer = adding(learner, init, after_step=after_step, start_task=start_task, free=free, looks_on=False)
        return through_view(outer._replace(alone=True), learner, own_view)

    return strategy


def _prune(params: Params, memory: Packed, active: Bool[Array, "k"], share) -> tuple[Params, Packed]:
    """Give the largest free weights to the current task, zero the others; outputs in play, and free biases, are its."""
    mine = memory.current + 1

    def claim(p, owner, out):
        free = owner == 0
        size = jnp.where(free, jnp.abs(p), -1).reshape(-1)
        count = jnp.ceil(share * jnp.sum(free, dtype=jnp.result_type(float))).astype(jnp.int32)
        rank = jnp.arange(size.shape[0], dtype=jnp.int32)
        largest = jnp.zeros(size.shape, bool).at[jnp.argsort(-size)].set(rank < jnp.maximum(count, 1))
        outputs = jnp.where(out, active, True) if p.shape[-1] == active.shape[0] else True
        chosen = free & jnp.where(_shared(p, out), outputs, largest.reshape(p.shape))
        return jnp.where(chosen, mine, owner)

    owner = jax.tree.map(claim, params, memory.owner, memory.out)
    kept = jax.tree.map(lambda p, o, out: jnp.where(_shared(p, out) | (o > 0), p, 0), params, owner, memory.out)
    return kept, memory._replace(owner=owner)


def _shared(p: Array, out: Bool[Array, "..."]) -> Bool[Array, "..."]:
    """Readouts and biases are seen by all tasks."""
    return out | (p.ndim < 2)


EXAMPLES = {"xdg": xdg(0.5), "packnet": packnet()}
SCENARIOS = {"xdg": ("task",), "packnet": ("task",)}
