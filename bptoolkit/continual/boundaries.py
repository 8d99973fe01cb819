"""How the tasks of a stream meet: in one pass, or with blurred boundaries.  Each makes a stream out of a stream."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bptoolkit.continual.streams import Indices, Stream, View, padded
from bptoolkit.counts import check_whole, fails
from bptoolkit.learning.sampling import shuffled
from bptoolkit.types import Key

__all__ = ["blurry", "online"]

APART = 2**32 - 1  # folded into a key, one that no stream makes of it: `split` makes those of small numbers


def online(stream: Stream, rows: int) -> Stream:
    """The same tasks with `rows` random training rows each, so that `rows // batch` steps are one pass for all.

    Test rows stay.  Every seed draws its own rows, without replacement; and it deals the tasks by another key than in
    the stream alone, so that seeds of the two are no pairs.

    Args:
        stream: whose tasks all have at least so many rows; of a stream of parts (`held_out`) a task that has fewer
            keeps them all.
        rows: of each task.

    Raises:
        ValueError: less than one row, or more than some task could have.
    """
    check_whole(rows=rows)
    least = min(_least_rows(stream), stream.rows_max)
    if rows > least:
        raise ValueError(f"rows must be in 1 … {least}, the rows of the smallest task, got {rows}.")

    def draw(key: Key) -> Indices:
        draw_key, choice_key = jax.random.split(key)
        indices = stream.draw(draw_key)
        place = jnp.arange(rows, dtype=jnp.int32)
        some = lambda key, index, count: index[shuffled(key, jnp.minimum(place, count - 1), count)]
        keys = jax.random.split(choice_key, stream.tasks)
        index = jax.vmap(some)(keys, indices.train.index, indices.train.count)
        return indices._replace(train=View(index, jnp.minimum(indices.train.count, rows).astype(jnp.int32)))

    return stream._replace(draw=draw, rows_max=rows)


def blurry(stream: Stream, share: float) -> Stream:
    """Boundaries that blur: so large a share of every task's training rows is dealt anew among all tasks.

    Each row is still in one task, and tasks keep their sizes; test rows stay, and every seed deals the tasks as in the
    stream alone.  A row counts as of the task in which it is met.  A strategy that keeps rows of each class of a task
    keeps none of the classes that have strayed in; one that needs no boundaries, such as `reservoir_replay` or `der`,
    treats all alike.

    Args:
        stream: class-incremental, since strayed rows keep the outputs of their classes, and of classes that are in one
            task each.
        share: in [0, 1]; 0 leaves the stream as it is, 1 leaves no tasks at all.

    Raises:
        ValueError: another scenario, classes that come back in every task, a share outside [0, 1].

    Reference: Aljundi, Kelchtermans & Tuytelaars (2019), CVPR, on task-free learning; Bang et al. (2021), CVPR.
    """
    if stream.scenario != "class":
        raise ValueError(
            f'blurry needs a stream of scenario "class", got "{stream.scenario}": elsewhere a strayed row has no label.'
        )
    if stream.tasks * stream.classes_per_task > stream.classes:
        raise ValueError(
            f"blurry needs classes that are in one task each, got {stream.tasks} tasks of {stream.classes_per_task} of "
            f"{stream.classes} classes: a strayed row would become one of the task it lands in. Take a split stream."
        )
    if fails(lambda number: (number >= 0) & (number <= 1), share):
        raise ValueError(f"share must be in [0, 1], got {share}.")

    def draw(key: Key) -> Indices:
        blur_key = jax.random.fold_in(key, APART)
        indices = stream.draw(key)
        own = _classes_of(indices.train, stream)
        slot = jnp.where(own, indices.slot, -1)
        return indices._replace(train=_dealt_anew(indices.train, share, blur_key), slot=slot)

    return stream._replace(draw=draw)


def _dealt_anew(view: View, share: float, key: Key) -> View:
    """A random share of each task's places, and what stands in them in a random order."""
    tasks, rows = view.index.shape
    choice_key, order_key = jax.random.split(key)
    place = jnp.arange(rows, dtype=jnp.int32)
    rank = jax.vmap(lambda key, count: shuffled(key, jnp.minimum(place, count - 1), count))(
        jax.random.split(choice_key, tasks), view.count
    )
    wanted = jnp.round(share * view.count.astype(jnp.float32)).astype(jnp.int32)
    strays = ((rank < wanted[:, None]) & (place < view.count[:, None])).reshape(-1)

    luck = jax.random.uniform(order_key, strays.shape, jnp.float32)
    places = jnp.argsort(~strays, stable=True)  # the strays' places first, in order
    contents = jnp.argsort(jnp.where(strays, luck, 2.0))  # and first again, in a random one
    flat = view.index.reshape(-1)
    moved = jnp.arange(flat.shape[0]) < jnp.sum(strays)
    index = flat.at[places].set(jnp.where(moved, flat[contents], flat[places]))
    return padded(View(index.reshape(tasks, rows), view.count))


def _classes_of(view: View, stream: Stream) -> Bool[Array, "tasks classes"]:
    """Which classes a task has rows of."""
    y: Int[Array, "tasks rows"] = stream.data.train.y[view.index]
    task = jnp.broadcast_to(jnp.arange(stream.tasks, dtype=jnp.int32)[:, None], y.shape)
    return jnp.zeros((stream.tasks, stream.classes), bool).at[task, y].set(True)


def _least_rows(stream: Stream) -> int:
    """Rows of the smallest task that any dealing could make: of its classes, those with fewest rows."""
    y = jnp.bincount(stream.data.train.y, length=stream.classes)
    if stream.tasks * stream.classes_per_task > stream.classes:  # every task has all rows
        return stream.rows_max
    return int(jnp.sort(y)[: stream.classes_per_task].sum())
