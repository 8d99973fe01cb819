"""FROMP, functional regularisation of a memorable past: answers to a few telling rows should stay as they were.

    L + τ/2 · Σ_tasks Σ_classes (m − m_old)ᵀ K⁻¹ (m − m_old),     K = J Σ Jᵀ + ε I,     Σ = 1/(n F + δ)

m are the probabilities of a class at a task's memorable rows, J = ∂m/∂θ, and Σ the diagonal Laplace posterior of the
weights, from the exact Fisher information summed over all rows so far.  After each task m_old, J and K are taken anew.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bptoolkit import trees
from bptoolkit.continual.fisher import fisher_of_task
from bptoolkit.continual.nesting import adding, seen_in
from bptoolkit.continual.strengths import Number, check_nonnegative, check_positive, check_whole, traced
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec, Task
from bptoolkit.learning.losses import probabilities
from bptoolkit.types import Batch, Info, Key, Memory, Model, Params, PyTree

__all__ = ["fromp", "inverse", "kernels", "memorable"]

JITTER = 1e-6  # ε
CHUNK = 256  # rows of a task that are scored at once


class Past(NamedTuple):
    """Memorable rows of every task, and what is expected of them; P places a task."""

    inner: Memory
    rows: Batch  # (tasks, P, …), weight 0 where nothing is stored
    means: Float[Array, "tasks P k"]
    inverses: Float[Array, "tasks k P P"]
    precision: Params  # Σ n F
    tasks: Int[Array, ""]  # behind
    tau: Float[Array, ""]


def fromp(
    tau: Number, per_class: int = 100, *, prior: float = 1e-3, rows: int | None = None, clip: float | None = None
) -> Strategy:
    """FROMP: hold the answers to memorable rows of earlier tasks, correlated through the net's own kernel.

    Memorable rows are the `per_class` of each class with the largest Σ_c p_c (1 − p_c).  A step looks at `rows` of
    them, shared out evenly among the tasks behind, each task's drawn without replacement, with K⁻¹ of all its rows.
    Each entry of K's diagonal first grows by ε = 10⁻⁶, or by P · (the dtype's precision) · (itself) where that is more,
    so that rounding cannot make K indefinite; K is inverted by our own elimination, whose pivots below ε count as ε.

    Ending a task needs memory for P · |θ| numbers, P = per_class · (classes a task), and time for (tasks behind) ·
    (outputs) · P² · |θ| products.

    Args:
        tau: τ, at least 0; may be traced.
        per_class: memorable rows of each class.
        prior: δ > 0, precision of the weights' prior.
        rows: looked at in a step; as many as the batch has if left out.
        clip: longest gradient, by the norm of all of it; the authors' optimiser clips at 1.  None for no limit.

    Raises:
        ValueError: a negative τ, less than one row, a prior or clip that is not positive.

    Reference: Pan, Swaroop, Immer, Eschenhagen, Turner & Khan (2020), NeurIPS, equation 8 and algorithm 1.
    """
    check_nonnegative("tau", tau)
    check_positive("prior", prior)
    check_whole(per_class=per_class, rows=rows)
    if clip is not None:
        check_positive("clip", clip)

    def strategy(learner: Learner) -> Learner:
        def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Past:
            size = (spec.tasks, spec.classes_per_task * per_class)
            stored = jax.tree.map(lambda leaf: jnp.zeros((*size, *leaf.shape), leaf.dtype), spec.example)
            real, k = stored.weight.dtype, spec.outputs
            means, inverses = jnp.zeros((*size, k), real), jnp.zeros((size[0], k, size[1], size[1]), real)
            return Past(inner, stored, means, inverses, trees.zeros_like(params), jnp.int32(0), traced(tau))

        def gradient(memory: Past, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Past]:
            inner_key, draw_key = jax.random.split(key)
            grads, info, inner = learner.gradient(memory.inner, params, batch, inner_key)
            wanted = batch.weight.shape[0] if rows is None else rows
            grads = trees.add(grads, _pull(learner, memory, params, wanted, draw_key))
            return grads if clip is None else _clipped(grads, clip), info, memory._replace(inner=inner)

        def end_task(memory: Past, params: Params, task: Task, key: Key) -> tuple[Params, Past]:
            model = seen_in(learner, memory.inner, task.number)
            chosen = memorable(model, params, task, per_class, memory.rows.weight.shape[1] // per_class)
            stored = jax.tree.map(lambda all, new: all.at[task.number].set(new), memory.rows, chosen)
            mean = fisher_of_task(model, params, task, key, "exact", None)
            precision = jax.tree.map(lambda f, n: f + n * task.count.astype(n.dtype), memory.precision, mean)
            variance = jax.tree.map(lambda f: 1 / (f + prior), precision)

            def of_task(one):
                number, rows = one
                see = lambda rows: kernels(seen_in(learner, memory.inner, number), params, rows, variance)
                wanted = (number <= task.number) & (
                    task.number + 1 < len(stored.weight)
                )  # nothing comes after the last
                return lax.cond(wanted, see, lambda rows: trees.zeros_like(jax.eval_shape(see, rows)), rows)

            numbers = jnp.arange(stored.weight.shape[0], dtype=jnp.int32)
            means, inverses = lax.map(of_task, (numbers, stored))
            return params, memory._replace(
                rows=stored, means=means, inverses=inverses, precision=precision, tasks=memory.tasks + 1
            )

        return adding(learner, init, end_task=end_task)._replace(gradient=gradient)

    return strategy


def memorable(model: Model, params: Params, task: Task, per_class: int, classes: int) -> Batch:
    """The rows of each class with the largest Σ_c p_c (1 − p_c); weight 0 where a class has too few."""
    chunks = -(-task.rows_max // CHUNK)
    place = jnp.minimum(jnp.arange(chunks * CHUNK, dtype=jnp.int32), task.rows_max - 1)

    def scores(place):
        rows = task.rows(place)
        p = jax.vmap(lambda row: probabilities(model.apply(params, row.x)[0], row.active))(rows)
        return jnp.sum(p * (1 - p), axis=1)

    score = lax.map(scores, place.reshape(chunks, CHUNK)).reshape(-1)[: task.rows_max]
    own = jnp.arange(task.rows_max, dtype=jnp.int32)
    slot = jnp.where(own < task.count, task.slot(own), -1)

    def of_class(c):
        best, chosen = lax.top_k(jnp.where(slot == c, score, -1), min(per_class, task.rows_max))
        short = per_class - best.shape[0]
        return jnp.pad(chosen, (0, short)), jnp.pad(best, (0, short), constant_values=-1) >= 0

    chosen, stored = jax.vmap(of_class)(jnp.arange(classes, dtype=jnp.int32))
    rows = task.rows(chosen.reshape(-1))
    return rows._replace(weight=stored.reshape(-1).astype(rows.weight.dtype))


def kernels(
    model: Model, params: Params, rows: Batch, variance: Params
) -> tuple[Float[Array, "P k"], Float[Array, "k P P"]]:
    """Probabilities of each class at the rows, and (J Σ Jᵀ + ε I)⁻¹ of each; zero for outputs and rows out of play."""
    answer = lambda p, row: probabilities(model.apply(p, row.x)[0], row.active)
    means = jax.vmap(answer, (None, 0))(params, rows)
    counts = rows.weight > 0

    def of_class(c):
        slopes = jax.vmap(jax.grad(lambda p, row: answer(p, row)[c]), (None, 0))(params, rows)
        flat = lambda leaf: jnp.where(counts[:, None], leaf.reshape(len(counts), -1), 0)
        pairs = jax.tree.map(lambda j, s: (flat(j) * s.reshape(1, -1)) @ flat(j).T, slopes, variance)
        kernel = jnp.sum(jnp.stack(jax.tree.leaves(pairs)), axis=0)
        # Rows differ by decades: each gets what its own rounding asks for, so that none is drowned by another's.
        resolved = len(counts) * float(jnp.finfo(kernel.dtype).eps) * jnp.diagonal(kernel)
        kernel = kernel + jnp.diag(jnp.maximum(JITTER, resolved))
        return jnp.where(counts[:, None] & counts[None, :], inverse(kernel), 0)

    silent = jnp.zeros((len(counts), len(counts)), means.dtype)
    in_play = lambda c: lax.cond(rows.active[0, c], of_class, lambda c: silent, c)
    return means, lax.map(in_play, jnp.arange(means.shape[1], dtype=jnp.int32))


def inverse(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """a⁻¹ of a positive definite matrix, by Gauss–Jordan elimination in place; pivots below ε count as ε.

    (LAPACK's batched routines, called on several CPU devices at once, can wait for each other for ever.)
    """

    def eliminate(k, a):
        row, column, pivot = a[k], a[:, k], jnp.maximum(a[k, k], JITTER)
        a = a - jnp.outer(column, row) / pivot
        return a.at[k].set(row / pivot).at[:, k].set(-column / pivot).at[k, k].set(1 / pivot)

    return lax.fori_loop(0, a.shape[0], eliminate, a)


def _pull(learner: Learner, memory: Past, params: Params, wanted: int, key: Key) -> Params:
    """The gradient of the penalty over some memorable rows: (∂m/∂θ)ᵀ τ K⁻¹ (m − m_old)."""
    tasks, places = memory.rows.weight.shape
    behind = jnp.maximum(memory.tasks, 1)
    number = jnp.arange(wanted, dtype=jnp.int32)
    task, rank = number % behind, number // behind
    shuffle = lambda k: jax.random.permutation(k, jnp.arange(places, dtype=jnp.int32))
    order = jax.vmap(shuffle)(jax.random.split(key, tasks))
    empty = jax.vmap(lambda weight, order: weight[order] <= 0)(memory.rows.weight, order)
    order = jnp.take_along_axis(order, jnp.argsort(empty, axis=1, stable=True), axis=1)  # what is stored comes first
    place = order[task, jnp.minimum(rank, places - 1)]
    rows = jax.tree.map(lambda leaf: leaf[task, place], memory.rows)
    counts = (rank < places) & (memory.tasks > 0) & (rows.weight > 0)

    def answers(params):
        one = lambda task, row: seen_in(learner, memory.inner, task).apply(params, row.x)[0]
        batched = one if learner.view is not None else lambda task, row: learner.model.apply(params, row.x)[0]
        return jax.vmap(lambda t, row: probabilities(batched(t, row), row.active))(task, rows)

    now, back = jax.vjp(answers, params)
    gap = jnp.where(counts[:, None], now - memory.means[task, place], 0)
    together = (task[:, None] == task[None, :])[..., None]
    weights = jnp.where(together, memory.inverses[task[:, None], :, place[:, None], place[None, :]], 0)
    pull = memory.tau.astype(gap.dtype) * jnp.einsum("ijk,jk->ik", weights, gap)
    return back(jnp.where(counts[:, None], pull, 0).astype(now.dtype))[0]


def _clipped(grads: PyTree, longest: float) -> PyTree:
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    return trees.scale(1 / jnp.maximum(norm / longest, 1), grads)


EXAMPLES = {"fromp": fromp(0.1, 2)}
