"""Hard attention to the task: each task learns which hidden units it needs, and later tasks leave those alone.

h ← a ⊙ h,  a = σ(s e_t);     L + c · Σ a (1 − a^{<t}) / Σ (1 − a^{<t});     Δθ_ij ← (1 − min(a_i, a_j)^{<t}) Δθ_ij
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bptoolkit.continual.gates import Gates, entering, hidden_units, leaving, scale_units
from bptoolkit.continual.nesting import adding, require_own_rows
from bptoolkit.continual.readout import readout
from bptoolkit.continual.strengths import check_nonnegative, check_positive, check_whole, traced
from bptoolkit.continual.views import answers_by_view, pulled_back, require_inside, require_told
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec, Task
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["compensated", "hat"]

CLIP_EMBEDDING = 6.0  # |e| stays below
CLIP_COSH = 50.0  # |s e| in the compensation


class Attention(NamedTuple):
    """Embeddings of the tasks, and which units and outputs earlier tasks need."""

    inner: Memory
    embeddings: Gates  # (tasks, units) a layer
    used: Gates  # a^{<t}, (units,) a layer
    outputs: Bool[Array, "k"]  # of earlier tasks
    out: PyTree  # True for weights of the readout
    current: Int[Array, ""]
    step: Int[Array, ""]
    steps: Int[Array, ""]
    strength: Float[Array, ""]
    sharpest: Float[Array, ""]
    rate: Float[Array, ""]


def hat(
    strength: Float[Array, ""] | float = 0.75,
    *,
    sharpest: Float[Array, ""] | float = 400.0,
    rate: Float[Array, ""] | float = 0.05,
    cycle: int | None = None,
) -> Strategy:
    """Hard attention to the task, learned by gradient descent beside the weights.

    s rises in each cycle of steps from 1/s_max to s_max, and is s_max when a task is tested; embeddings start as
    standard normals, follow their compensated gradient (`compensated`) at `rate`, and stay within ±6.  Embeddings
    are kept in the memory, so the experiment's optimiser does not touch them.  What an update would do to a weight is
    scaled in place of its gradient, which is the same under plain gradient descent and holds under any optimiser.
    In a recurrent net a unit's attention is what it sends, to other units and to the outputs.  Penalties and rehearsal
    go around it, `replay(…)(hat(…)(rule))`; inside of it their rows would pass the current task's attention.

    Args:
        strength: c of the sparsity of new units, at least 0; may be traced.
        sharpest: s_max > 0; may be traced.
        rate: of the embeddings, positive; may be traced.
        cycle: steps in which s rises, an epoch in the paper; the task's steps if left out.

    Raises:
        ValueError: a number out of its range; a stream that does not tell the task at test time; a model that does
            not show its hidden units; a penalty or rehearsal inside.

    Reference: Serrà, Surís, Miron & Karatzoglou (2018), ICML.
    """
    check_nonnegative("strength", strength)
    check_positive("sharpest", sharpest)
    check_positive("rate", rate)
    check_whole(cycle=cycle)

    def strategy(learner: Learner) -> Learner:
        require_inside(learner, "hat")
        require_own_rows(learner, "hat")
        model = learner.model

        def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Attention:
            require_told(spec, "hat")
            out_key, *keys = jax.random.split(key, 1 + len(hidden_units(model, params, "hat")))
            units = hidden_units(model, params)
            embeddings = tuple(jax.random.normal(k, (spec.tasks, n)) for k, n in zip(keys, units, strict=True))
            return Attention(
                inner,
                embeddings,
                tuple(jnp.zeros_like(e[0]) for e in embeddings),
                jnp.zeros(spec.outputs, bool),
                readout(model, params, out_key),
                jnp.int32(0),
                jnp.int32(0),
                jnp.int32(cycle or max(spec.steps, 1)),
                traced(strength),
                traced(sharpest),
                traced(rate),
            )

        def gradient(memory: Attention, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Attention]:
            s = sharpness(memory)

            def see(variables, task):
                params, embeddings = variables
                sharp = jnp.where(task == memory.current, s, memory.sharpest)  # rehearsed tasks are seen as tested
                attention = tuple(jax.nn.sigmoid(sharp * e[task]) for e in embeddings)
                return scale_units(model, params, attention, jax.tree.map(jnp.ones_like, attention))

            variables = (params, memory.embeddings)
            (grads, of_loss), info, inner = pulled_back(learner, memory.inner, see, variables, batch, key)
            of_sparsity = jax.grad(lambda e: _sparsity(e, memory, s))(memory.embeddings)

            def stepped(e, q, r):
                q = compensated(q + memory.strength * r, e, s, memory.sharpest)
                return jnp.clip(e - memory.rate * q, -CLIP_EMBEDDING, CLIP_EMBEDDING)

            moved = jax.tree.map(stepped, memory.embeddings, of_loss, of_sparsity)
            kept = jax.tree.map(lambda e, m: e.at[memory.current].set(m[memory.current]), memory.embeddings, moved)
            return grads, info, memory._replace(inner=inner, embeddings=kept)

        def free(memory: Attention, params: Params) -> PyTree:
            ways = leaving(model, params, memory.used), entering(model, params, memory.used)

            def of(p, source, target, out):
                new = ~memory.outputs if p.shape[-1] == len(memory.outputs) else True
                return jnp.where(out, jnp.where(new, 1.0, 0.0).astype(p.dtype), 1 - jnp.minimum(source, target))

            return jax.tree.map(of, params, *ways, memory.out)

        def after_step(memory: Attention, before: Params, after: Params, opt_state, batch: Batch, key: Key):
            return after, opt_state, memory._replace(step=memory.step + 1)

        def start_task(memory: Attention, params: Params, task: Int[Array, ""], key: Key):
            return params, memory._replace(current=task, step=jnp.int32(0))

        def end_task(memory: Attention, params: Params, task: Task, key: Key):
            now = tuple(jax.nn.sigmoid(memory.sharpest * e[task.number]) for e in memory.embeddings)
            used = jax.tree.map(jnp.maximum, memory.used, now)
            active = task.rows(jnp.zeros(1, jnp.int32)).active[0]
            return params, memory._replace(used=used, outputs=memory.outputs | active)

        def own_view(memory: Attention, params: Params, task: Int[Array, ""]) -> Params:
            attention = tuple(jax.nn.sigmoid(memory.sharpest * e[task]) for e in memory.embeddings)
            return scale_units(model, params, attention, jax.tree.map(jnp.ones_like, attention))

        steps = {"after_step": after_step, "start_task": start_task, "end_task": end_task}
        outer = adding(learner, init, **steps, free=free, looks_on=False)
        return answers_by_view(outer, learner, own_view)._replace(gradient=gradient, alone=True)

    return strategy


def sharpness(memory: Attention) -> Float[Array, ""]:
    """s of this step, from 1/s_max linearly to s_max within a cycle."""
    place = (memory.step % memory.steps).astype(memory.sharpest.dtype)
    along = place / jnp.maximum(memory.steps - 1, 1).astype(memory.sharpest.dtype)
    return 1 / memory.sharpest + (memory.sharpest - 1 / memory.sharpest) * along


def compensated(q: Array, e: Array, s: Float[Array, ""], sharpest: Float[Array, ""]) -> Array:
    """q · s_max (cosh(s e) + 1) / (s (cosh(e) + 1)): the gradient as if s were 1, times s_max; the paper's q′."""
    rise = jnp.cosh(jnp.clip(s * e, -CLIP_COSH, CLIP_COSH)) + 1
    return q * sharpest * rise / (s * (jnp.cosh(e) + 1))


def _sparsity(embeddings: Gates, memory: Attention, s: Float[Array, ""]) -> Float[Array, ""]:
    """Σ a (1 − a^{<t}) / Σ (1 − a^{<t}): the share of free units that this task takes."""
    attention = [jax.nn.sigmoid(s * e[memory.current]) for e in embeddings]
    taken = sum(jnp.sum(a * (1 - u)) for a, u in zip(attention, memory.used, strict=True))
    free = sum(jnp.sum(1 - u) for u in memory.used)
    return taken / jnp.maximum(free, jnp.finfo(memory.strength.dtype).tiny)


EXAMPLES = {"hat": hat()}
SCENARIOS = {"hat": ("task",)}
