"""Gradient episodic memory: a step that would go uphill on stored rows of earlier tasks is turned until it does not.

GEM     the nearest g̃ with ⟨g̃, g_k⟩ ≥ 0, g_k the gradient on the stored rows of task k, for every k behind
A-GEM   the same for one g_ref on some of all stored rows:
        g̃ = g − ⟨g, g_ref⟩ / (⟨g_ref, g_ref⟩ + ε) · g_ref  where ⟨g, g_ref⟩ < 0
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bptoolkit import trees
from bptoolkit.continual.buffers import Buffer, check_room, new_buffer, of_task
from bptoolkit.continual.nesting import around
from bptoolkit.continual.nonnegative import minimise_above
from bptoolkit.continual.rehearse import remembering, stored_rows
from bptoolkit.continual.strengths import check_nonnegative, check_whole
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec, Task
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["agem", "gem", "project", "project_all"]


def agem(
    per_class: int, rows: int | None = None, *, epsilon: float = 1e-7, epochs: bool = False, per_task: bool = False
) -> Strategy:
    """Averaged GEM: follow the current rows, but never uphill on the stored ones.

    The reference gradient is that of the learner inside, on stored rows alone: where that is EWC, its penalty counts.

    Args:
        per_class: rows kept of each class of a task; all where a class has fewer.
        rows: stored rows of the reference gradient; as many as the batch has if left out.
        epsilon: added to ⟨g_ref, g_ref⟩.
        epochs, per_task: how stored rows are drawn, as in `replay`.

    Raises:
        ValueError: less than one row; `per_task` without `epochs`.

    Reference: Chaudhry et al. (2019), ICLR, "Efficient lifelong learning with A-GEM".
    """
    check_whole(per_class=per_class, rows=rows)
    check_nonnegative("epsilon", epsilon)
    stored = stored_rows(epochs, per_task)

    def strategy(learner: Learner) -> Learner:
        def gradient(memory: Buffer, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Buffer]:
            inner_key, draw_key, past_key = jax.random.split(key, 3)
            again = stored(memory, draw_key, batch.x.shape[0] if rows is None else rows)
            reference, _, _ = learner.gradient(memory.inner, params, again, past_key)
            grads, info, inner = learner.gradient(memory.inner, params, batch, inner_key)
            turned = trees.choose(memory.tasks > 0, project(grads, reference, epsilon), grads)
            return turned, info, memory._replace(inner=inner, step=memory.step + 1)

        return remembering(learner, per_class, gradient)

    return strategy


def project(grads: PyTree, reference: PyTree, epsilon: float = 0.0) -> PyTree:
    """g − min(⟨g, r⟩, 0) / (⟨r, r⟩ + ε) · r."""
    along = jnp.minimum(dot(grads, reference), 0)
    length = dot(reference, reference) + jnp.asarray(epsilon, along.dtype)
    share = along / jnp.where(length > 0, length, 1)
    return jax.tree.map(lambda g, r: g - share.astype(g.dtype) * r, grads, reference)


class Episodes(NamedTuple):
    """Stored rows of each task, (tasks, places, …), and the margin."""

    inner: Memory
    rows: Batch
    tasks: Int[Array, ""]  # behind
    margin: Float[Array, ""]


def gem(per_task: int, *, margin: Float[Array, ""] | float = 0.5, ridge: float = 1e-3) -> Strategy:
    """GEM: the step may not go uphill on the stored rows of any task behind.

    Where it would, g̃ = g + Gᵀv, and v ≥ margin minimises ½ vᵀ(GGᵀ + ridge · I)v + (Gg)ᵀv, G with the gradient of each
    task behind as a row.  As in the authors' code a margin above 0 then pulls towards all that is stored.

    Args:
        per_task: random rows kept of each task; all of them make its gradient, at every step.
        margin: at least 0; may be traced.
        ridge: added to the diagonal of GGᵀ.

    Raises:
        ValueError: less than one row, fewer than a task has classes, a negative margin.

    Reference: Lopez-Paz & Ranzato (2017), NeurIPS.  They keep a task's last rows; in random order these are random.
    """
    check_whole(per_task=per_task)
    check_nonnegative("margin", margin)
    check_nonnegative("ridge", ridge)

    def strategy(learner: Learner) -> Learner:
        def init(params: Params, spec: StreamSpec, key: Key) -> Episodes:
            check_room("per_task", per_task, spec.classes_per_task)
            rows = new_buffer((), spec, per_task).rows
            return Episodes(
                learner.init(params, spec, key), rows, jnp.int32(0), jnp.asarray(margin, jnp.result_type(float))
            )

        def gradient(memory: Episodes, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Episodes]:
            inner_key, past_key = jax.random.split(key)
            one = lambda rows, key: learner.gradient(memory.inner, params, rows, key)[0]
            past, behind = _past(one, memory, params, past_key)
            grads, info, inner = learner.gradient(memory.inner, params, batch, inner_key)
            return project_all(grads, past, behind, memory.margin, ridge), info, memory._replace(inner=inner)

        def end_task(memory: Episodes, params: Params, task: Task, key: Key) -> tuple[Params, Episodes]:
            inner_key, choice_key = jax.random.split(key)
            params, inner = learner.end_task(memory.inner, params, task, inner_key)
            kept = of_task(task, per_task, choice_key)
            rows = jax.tree.map(lambda all, new: all.at[task.number].set(new), memory.rows, kept)
            return params, memory._replace(inner=inner, rows=rows, tasks=memory.tasks + 1)

        return around(learner, init=init, gradient=gradient, end_task=end_task)

    return strategy


def project_all(
    grads: PyTree, past: PyTree, behind: Bool[Array, "tasks"], margin: Float[Array, ""] | float, ridge: float
) -> PyTree:
    """g + Gᵀv, where ⟨g, g_k⟩ < 0 for some task k behind; else g.

    Args:
        grads: g.
        past: the g_k, stacked along a first axis.
        behind: (tasks,) which of them count.
        margin, ridge: as in `gem`.
    """
    with_past = jax.vmap(dot, (0, None))
    along = jnp.where(behind, with_past(past, grads), 0)  # (tasks,)
    gram = jax.vmap(with_past, (None, 0))(past, past)
    damped = jnp.where(behind[:, None] & behind[None, :], gram, 0) + jnp.diag(
        jnp.where(behind, jnp.asarray(ridge, gram.dtype), 1)
    )
    lower = jnp.where(behind, jnp.asarray(margin, gram.dtype), 0)
    v = jnp.where(behind, minimise_above(damped, along, lower).value, 0)
    turned = jax.tree.map(lambda g, rows: g + jnp.tensordot(v.astype(g.dtype), rows, 1), grads, past)
    return trees.choose(jnp.any(behind & (along < 0)), turned, grads)


def dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """⟨a, b⟩ over all leaves."""
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)
    return jax.tree.reduce(jnp.add, products)


def _past(one, memory: Episodes, params: Params, key: Key) -> tuple[PyTree, Bool[Array, "tasks"]]:
    """The gradient on the stored rows of every task but the last, which is never behind another; and which count."""
    tasks = jnp.arange(max(memory.rows.weight.shape[0] - 1, 1), dtype=jnp.int32)
    nothing = trees.zeros_like(params)

    def of_task(task):
        rows = jax.tree.map(lambda leaf: leaf[task], memory.rows)
        found = lambda: one(rows, jax.random.fold_in(key, task))
        return lax.cond(task < memory.tasks, found, lambda: nothing)

    return lax.map(of_task, tasks), tasks < memory.tasks


EXAMPLES = {"agem": agem(2), "gem": gem(3)}
