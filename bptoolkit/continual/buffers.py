"""Where rows of earlier tasks are kept: so many of each class of a finished task, or a reservoir of all that came by.

A reservoir of capacity m holds, after n ≥ m rows, each of them with probability m/n: row i takes a free place, or with
probability m/i that of one already there.

Reference: Vitter (1985), ACM TOMS 11, algorithm R.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bptoolkit.learning.learner import StreamSpec, Task
from bptoolkit.learning.sampling import positions, shuffled
from bptoolkit.types import Batch, Key, Memory, PyTree

__all__ = [
    "Buffer",
    "Reservoir",
    "add",
    "any_of",
    "draw",
    "draw_in_epochs",
    "held",
    "keep",
    "new_buffer",
    "new_reservoir",
    "nth",
    "of_each_class",
    "of_task",
    "packed",
    "some",
    "weigh",
]


class Buffer(NamedTuple):
    """Stored rows, (tasks, places, …), those of each task in its first places; weight 0 where nothing is stored."""

    inner: Memory
    rows: Batch
    tasks: Int[Array, ""]  # stored so far
    step: Int[Array, ""]  # since the last of them was stored
    salt: Int[Array, ""]  # of the order in which they are drawn until the next one is


class Reservoir(NamedTuple):
    """Stored rows, (capacity, …), and what goes with each; the first min(seen, capacity) count."""

    rows: Batch
    seen: Int[Array, ""]
    beside: PyTree = ()


def new_buffer(inner: Memory, spec: StreamSpec, places: int) -> Buffer:
    """Room for `places` rows of each task."""
    return Buffer(inner, _blank(spec, (spec.tasks, places)), jnp.int32(0), jnp.int32(0), jnp.uint32(0))


def new_reservoir(spec: StreamSpec, capacity: int, beside: PyTree = ()) -> Reservoir:
    """Room for `capacity` rows, and for arrays of these shapes beside each."""
    more = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), beside)
    return Reservoir(_blank(spec, (capacity,)), jnp.int32(0), more)


def keep(buffer: Buffer, task: Task, rows: Batch, key: Key) -> Buffer:
    """The buffer with the rows of a task that has ended."""
    stored = jax.tree.map(lambda all, new: all.at[task.number].set(new), buffer.rows, packed(rows))
    return Buffer(buffer.inner, stored, buffer.tasks + 1, jnp.int32(0), jax.random.bits(key, (), jnp.uint32))


def draw(buffer: Buffer, key: Key, rows: int) -> Batch:
    """Rows drawn with replacement from what is stored of the tasks so far; weight 0 before the first is."""
    return any_of(buffer.rows, key, rows)


def draw_in_epochs(buffer: Buffer, rows: int, per_task: bool) -> Batch:
    """The next rows in epochs over what is stored: without replacement, what does not fill a batch left out.

    With `per_task`, ⌈rows / m⌉ of each of the m tasks behind, each task in epochs of its own; what does not count has
    weight 0.
    """
    tasks, places = buffer.rows.weight.shape
    behind, stored = jnp.maximum(buffer.tasks, 1), held(buffer.rows)
    total = max(m * -(-rows // m) for m in range(1, max(tasks, 2))) if per_task else rows
    share = -(-rows // behind) if per_task else jnp.int32(rows)

    i = jnp.arange(total, dtype=jnp.int32)
    group = i // share
    size = stored[jnp.minimum(group, tasks - 1)] if per_task else jnp.sum(stored, dtype=jnp.int32)
    size = jnp.broadcast_to(jnp.maximum(size, 1), i.shape)
    steps = jnp.maximum(size // share, 1)
    place = i % share + (buffer.step % steps) * share
    counts = (place < size) & (group < behind if per_task else group < 1)
    of_group = lambda g, epoch: jax.random.fold_in(jax.random.fold_in(jax.random.key(buffer.salt), g), epoch)
    keys = jax.vmap(of_group)(group, buffer.step // steps)
    place = jnp.minimum(place, size - 1)
    order = jax.vmap(lambda key, place, size: shuffled(key, place[None], size)[0])(keys, place, size)
    if per_task:
        there = jnp.minimum(group, tasks - 1), jnp.minimum(order, places - 1)
        drawn = jax.tree.map(lambda leaf: leaf[there], buffer.rows)
    else:
        drawn = nth(buffer.rows, order)
    return drawn._replace(weight=jnp.where(counts, drawn.weight, 0))


def packed(rows: Batch) -> Batch:
    """The same rows, those that count first, in their order."""
    order = jnp.argsort(rows.weight <= 0, stable=True)
    return jax.tree.map(lambda leaf: leaf[order], rows)


def held(rows: Batch) -> Int[Array, "tasks"]:
    """How many rows are stored of each task, of rows (tasks, places, …)."""
    return jnp.sum(rows.weight > 0, axis=1, dtype=jnp.int32)


def any_of(rows: Batch, key: Key, n: int) -> Batch:
    """n of all stored rows, with replacement, of packed rows (tasks, places, …); of weight 0 where none is stored."""
    return nth(rows, jax.random.randint(key, (n,), 0, jnp.maximum(jnp.sum(held(rows), dtype=jnp.int32), 1), jnp.int32))


def nth(rows: Batch, n: Int[Array, "b"]) -> Batch:
    """The n-th of all stored rows, of packed rows (tasks, places, …): no empty place is drawn while one is filled."""
    ends = jnp.cumsum(held(rows), dtype=jnp.int32)
    task = jnp.minimum(jnp.sum(n[:, None] >= ends[None, :], axis=1, dtype=jnp.int32), len(ends) - 1)
    begin = jnp.where(task > 0, ends[task - 1], 0)
    place = jnp.minimum(n - begin, rows.weight.shape[1] - 1)
    return jax.tree.map(lambda leaf: leaf[task, place], rows)


def of_each_class(task: Task, per_class: int, classes: int, key: Key) -> Batch:
    """`per_class` random rows of each class of a task, without replacement; weight 0 where a class has too few."""
    place = jnp.arange(task.rows_max, dtype=jnp.int32)
    slot = jnp.where(place < task.count, task.slot(place), -1)
    luck = jax.random.uniform(key, (task.rows_max,))

    def of_class(c):
        score, chosen = jax.lax.top_k(jnp.where(slot == c, luck, -1), min(per_class, task.rows_max))
        short = per_class - score.shape[0]
        return jnp.pad(chosen, (0, short)), jnp.pad(score, (0, short), constant_values=-1) >= 0

    chosen, stored = jax.vmap(of_class)(jnp.arange(classes, dtype=jnp.int32))
    return counted(task.rows(chosen.reshape(-1)), stored.reshape(-1))


def of_task(task: Task, places: int, key: Key) -> Batch:
    """`places` random rows of a task, whatever their class, without replacement; weight 0 where it has too few."""
    place = jnp.arange(places, dtype=jnp.int32)
    return counted(task.rows(shuffled(key, jnp.minimum(place, task.count - 1), task.count)), place < task.count)


def add(reservoir: Reservoir, batch: Batch, key: Key, beside: PyTree = ()) -> Reservoir:
    """Offer the rows that have weight, one after the other, each with what goes beside it."""
    capacity, offered = reservoir.rows.weight.shape[0], batch.weight > 0
    nth = reservoir.seen + jnp.cumsum(offered, dtype=jnp.int32) - 1  # rows that came before, this batch's too
    lot = jax.random.randint(key, nth.shape, 0, nth + 1, jnp.int32)
    place = jnp.where(nth < capacity, nth, lot)
    place = jnp.where(offered, place, capacity)
    row = jnp.arange(place.shape[0], dtype=jnp.int32)
    last = jnp.full(capacity, -1, jnp.int32).at[place].max(row, mode="drop")  # of two rows for a place, the later stays
    stays = last[jnp.minimum(place, capacity - 1)] == row
    place = jnp.where(offered & stays, place, capacity)
    put = lambda all, new: all.at[place].set(new, mode="drop")
    rows, more = jax.tree.map(put, (reservoir.rows, reservoir.beside), (batch, beside))
    return Reservoir(rows, reservoir.seen + jnp.sum(offered, dtype=jnp.int32), more)


def some(reservoir: Reservoir, key: Key, rows: int) -> tuple[Batch, PyTree]:
    """Rows of the reservoir, without replacement, and what is beside them; weight 0 beyond what it holds."""
    held = jnp.minimum(reservoir.seen, reservoir.rows.weight.shape[0])
    place, counts = positions(key, jnp.int32(0), held, rows, False)
    place = jnp.where(counts, place, 0)
    batch, beside = jax.tree.map(lambda leaf: leaf[place], (reservoir.rows, reservoir.beside))
    return counted(batch, counts), beside


def weigh(batch: Batch, share: Float[Array, ""] | float) -> Batch:
    """The same rows with weights that sum to `share`; as they are where none has weight."""
    total = jnp.sum(batch.weight)
    return batch._replace(weight=batch.weight * share / jnp.where(total > 0, total, 1))


def counted(batch: Batch, counts: Bool[Array, "b"]) -> Batch:
    """The same rows with weight 1 or 0."""
    return batch._replace(weight=counts.astype(batch.weight.dtype))


def concatenate(*batches: Batch) -> Batch:
    """All rows of all batches."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)


def as_heavy(rows: Batch, batch: Batch) -> Batch:
    """The rows, weights 1 and 0, as heavy as those of a batch on average, which a strategy around may have weighed."""
    counts = jnp.sum(batch.weight > 0, dtype=batch.weight.dtype)
    mean = jnp.sum(batch.weight) / jnp.where(counts > 0, counts, 1)
    return rows._replace(weight=rows.weight * jnp.where(counts > 0, mean, 1))


def check_room(name: str, places: int, classes: int) -> None:
    """Raise unless every class can have a row."""
    if places < classes:
        raise ValueError(
            f"{name} must be at least the number of classes, {classes}, or some class is never replayed; got {places}."
        )


def _blank(spec: StreamSpec, size: tuple[int, ...]) -> Batch:
    empty = jax.tree.map(lambda leaf: jnp.zeros((*size, *leaf.shape), leaf.dtype), spec.example)
    return empty._replace(temperature=jnp.ones_like(empty.temperature))
