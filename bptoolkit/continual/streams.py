"""Sequences of tasks, drawn from a key as index views: every seed has its own, and all share one copy of the data.

The scenarios (van de Ven, Tuytelaars & Tolias 2022) differ in what the net must tell:
    task     which of the task's classes, and it is told the task: only the task's outputs are active
    domain   which of the task's classes, without being told the task: tasks share their outputs
    class    which class of all: every output is active from the start
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bptoolkit.checks import check
from bptoolkit.counts import check_whole, fails, positive
from bptoolkit.learning.learner import Scenario, StreamSpec
from bptoolkit.types import Batch, Dataset, Key, Rows

__all__ = ["Indices", "Scenario", "Stream", "View", "label_shuffled", "permuted", "rotated", "split"]


class View(NamedTuple):
    """Which rows of the data belong to each task."""

    index: Int[Array, "tasks rows"]  # places from `count` on repeat the last row
    count: Int[Array, "tasks"]


class Indices(NamedTuple):
    """One seed's tasks."""

    train: View
    test: View
    output: Int[Array, "tasks classes"]  # which output stands for a class in a task
    slot: Int[Array, "tasks classes"]  # which of the task's classes it is, from 0
    active: Bool[Array, "tasks outputs"]
    order: Int[Array, "tasks pixels"] | None = None  # where each pixel comes from; beyond the last: nowhere, it is 0
    angle: Float[Array, "tasks"] | None = None  # in radians


class Stream(NamedTuple):
    """A sequence of tasks over one data set.  `draw` takes a key, and leaves the images where they are."""

    data: Dataset
    tasks: int
    classes: int
    rows_max: int  # training rows of the largest task
    draw: Callable[[Key], Indices]
    test_rows_max: int
    classes_per_task: int
    outputs: int
    scenario: Scenario


def split(dataset: Dataset, classes_per_task: int, scenario: Scenario = "class", *, shuffle: bool = True) -> Stream:
    """Deal the classes out to tasks, `classes_per_task` each, in an order drawn from the key.

    Args:
        dataset: labelled; classes without rows are refused.
        classes_per_task: at least 1; classes left over after the last whole task are left out.
        scenario: "class" and "task" have one output a class, "domain" one per class of a task.
        shuffle: draw the order of the classes; False deals 0, 1, 2, …

    Raises:
        ValueError: fewer classes than one task needs, an empty class, an unknown scenario, a bad data set.
    """
    dataset = _checked(dataset, scenario)
    check_whole(classes_per_task=classes_per_task)
    if not 1 <= classes_per_task <= dataset.classes:
        raise ValueError(
            f"classes_per_task must be in 1 … {dataset.classes}, the classes of the data set, got {classes_per_task}."
        )
    tasks = dataset.classes // classes_per_task
    outputs = classes_per_task if scenario == "domain" else dataset.classes
    parts = {"train": _by_class(dataset.train, dataset.classes), "test": _by_class(dataset.test, dataset.classes)}
    for name, part in parts.items():
        if (part.count == 0).any():
            raise ValueError(
                f"Every class needs rows in each part; {name} has none of class {int(np.argmin(part.count))}.\n"
                "Raise the limit on rows, or leave that class out of the data set."
            )

    def draw(key: Key) -> Indices:
        names = jnp.arange(dataset.classes, dtype=jnp.int32)
        dealt = jax.random.permutation(key, names) if shuffle else names
        dealt = dealt[: tasks * classes_per_task].reshape(tasks, classes_per_task)
        member = names[None, None, :] == dealt[:, :, None]  # (tasks, classes_per_task, classes)
        slot = jnp.argmax(member, axis=1).astype(jnp.int32)
        output = slot if scenario == "domain" else jnp.broadcast_to(names, slot.shape)
        active = jnp.any(member, axis=1) if scenario == "task" else jnp.ones((tasks, outputs), bool)
        views = {name: _gather_classes(part, dealt) for name, part in parts.items()}
        return Indices(views["train"], views["test"], output, slot, active)

    sizes = {name: _largest(part.count, classes_per_task) for name, part in parts.items()}
    return Stream(
        dataset, tasks, dataset.classes, sizes["train"], draw, sizes["test"], classes_per_task, outputs, scenario
    )


def permuted(dataset: Dataset, tasks: int, scenario: Scenario = "domain") -> Stream:
    """The whole data set in every task, its pixels in an order of the task's own, the first task's too.

    Args:
        dataset: labelled rows of any shape.
        tasks: how many, at least 1.
        scenario: "domain" shares the outputs among the tasks; in "task" and "class" each task has outputs of its own.

    Raises:
        ValueError: less than one task, an unknown scenario, a bad data set.
    """
    dataset = _checked(dataset, scenario)
    pixels = math.prod(dataset.train.x.shape[1:])
    order = lambda key: jax.vmap(lambda k: jax.random.permutation(k, jnp.arange(pixels, dtype=jnp.int32)))(
        jax.random.split(key, tasks)
    )
    return _whole(dataset, tasks, scenario, lambda key: {"order": order(key)})


def rotated(
    dataset: Dataset,
    tasks: int,
    scenario: Scenario = "domain",
    *,
    degrees: float = 180.0,
    rising: bool = False,
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
) -> Stream:
    """The whole data set in every task, turned by an angle drawn from [0, degrees).

    Args:
        dataset: images (n, h, w) or (n, h, w, c).
        tasks, scenario: as in `permuted`.
        degrees: upper end of the angles; 180 as in Lopez-Paz & Ranzato (2017).
        rising: task t of T (from 0) draws from [t/T, (t + 1)/T) of the range, as in their code.
        interpolation: "nearest" takes the pixel that a place comes from, as imaging libraries do if nothing is said;
            it is cheaper.

    Raises:
        ValueError: less than one task, rows that are not images, degrees that are not positive, an unknown scenario or
            interpolation, a bad data set.
    """
    dataset = _checked(dataset, scenario)
    if fails(positive, degrees):
        raise ValueError(f"degrees must be positive and finite, got {degrees}.")
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(f'interpolation must be "bilinear" or "nearest", got {interpolation!r}.')
    if dataset.train.x.ndim not in (3, 4):
        raise ValueError(f"rotated needs images (n, h, w) or (n, h, w, c), got shape {dataset.train.x.shape}.")
    widest = math.radians(degrees)

    def angle(key: Key) -> Float[Array, "tasks"]:
        if rising:
            return (jnp.arange(float(tasks)) + jax.random.uniform(key, (tasks,))) * (widest / tasks)
        return jax.random.uniform(key, (tasks,), maxval=widest)

    if interpolation == "bilinear":
        return _whole(dataset, tasks, scenario, lambda key: {"angle": angle(key)})
    shape = dataset.train.x.shape[1:]
    return _whole(dataset, tasks, scenario, lambda key: {"order": jax.vmap(lambda a: _origins(shape, a))(angle(key))})


def label_shuffled(dataset: Dataset, tasks: int) -> Stream:
    """The whole data set in every task, its labels renamed by a random permutation of the task's own, the first's too.

    Domain-incremental: what was learned of the inputs serves every task, and no task's answers are right in another.
    So it tests whether a net can still learn at all (Lyle et al., 2023, ICML), more than whether it remembers.

    Raises:
        ValueError: less than one task, a bad data set.
    """
    dataset = _checked(dataset, "domain")
    name = jnp.arange(dataset.classes, dtype=jnp.int32)
    renamed = lambda key: jax.vmap(lambda k: jax.random.permutation(k, name))(jax.random.split(key, tasks))
    return _whole(dataset, tasks, "domain", lambda key: dict.fromkeys(("output", "slot"), renamed(key)))


def spec(stream: Stream) -> StreamSpec:
    """The static facts that a learner's memory is built from."""
    view = jax.eval_shape(stream.draw, jax.random.key(0))
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    rows = jax.eval_shape(lambda i, n: gather(stream.data.train, stream.data.scale, i, n, n), view, one)
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rows)
    sizes = (stream.tasks, stream.classes, stream.classes_per_task, stream.rows_max, stream.outputs)
    return StreamSpec(*sizes, example, stream.scenario)


def gather(rows: Rows, scale: float, indices: Indices, task: Int[Array, "b"], row: Int[Array, "b"]) -> Batch:
    """Rows of the data set as rows of a batch: floats, seen as their task sees them."""
    real = jnp.result_type(float)
    x = rows.x[row].astype(real) / jnp.asarray(scale, real)
    if indices.order is not None:
        flat = x.reshape(len(x), -1)
        x = jnp.take_along_axis(flat, indices.order[task], axis=1, mode="fill", fill_value=0).reshape(x.shape)
    if indices.angle is not None:
        x = jax.vmap(_turn)(x, indices.angle[task].astype(real))
    return Batch(
        x=x,
        target=jax.nn.one_hot(indices.output[task, rows.y[row]], indices.active.shape[1], dtype=real),
        active=indices.active[task],
        weight=jnp.ones(row.shape, real),
        temperature=jnp.ones(row.shape, real),
        task=task,
        index=row,
    )


def counted(view: View) -> Bool[Array, "tasks rows"]:
    """Which places of each task count."""
    return jnp.arange(view.index.shape[1], dtype=jnp.int32) < view.count[:, None]


def padded(view: View) -> View:
    """The view with the last row that counts in every place behind it."""
    last = jnp.take_along_axis(view.index, jnp.maximum(view.count - 1, 0)[:, None], axis=1)
    return view._replace(index=jnp.where(counted(view), view.index, last))


class _Classes(NamedTuple):
    """Rows sorted by class, on the host: class c is order[start[c] : start[c] + count[c]]."""

    order: np.ndarray
    start: np.ndarray
    count: np.ndarray


def _by_class(rows: Rows, classes: int) -> _Classes:
    y = np.asarray(rows.y)
    count = np.bincount(y, minlength=classes)
    start = np.cumsum(count) - count
    return _Classes(*(a.astype(np.int32) for a in (np.argsort(y, kind="stable"), start, count)))


def _largest(count: np.ndarray, classes: int) -> int:
    """Rows of the largest task that any dealing could make."""
    return int(np.sort(count)[-classes:].sum())


def _gather_classes(part: _Classes, dealt: Int[Array, "tasks per"]) -> View:
    """The rows of each task: its classes one behind the other."""
    ends = jnp.cumsum(jnp.asarray(part.count)[dealt], axis=1)  # (tasks, per)
    place = jnp.arange(_largest(part.count, dealt.shape[1]), dtype=jnp.int32)

    def one(classes, ends):
        place_in = jnp.minimum(place, ends[-1] - 1)
        nth = jnp.sum(place_in[:, None] >= ends[None, :], axis=1)
        before = jnp.where(nth > 0, ends[nth - 1], 0)
        return jnp.asarray(part.order)[jnp.asarray(part.start)[classes[nth]] + place_in - before]

    return View(jax.vmap(one)(dealt, ends), ends[:, -1])


def _whole(dataset: Dataset, tasks: int, scenario: Scenario, transform: Callable[[Key], dict]) -> Stream:
    """Every task holds all rows of a data set that is checked; `transform` draws how each task shows them."""
    check_whole(tasks=tasks)
    classes = dataset.classes
    outputs = classes if scenario == "domain" else classes * tasks
    sizes = [len(part.y) for part in (dataset.train, dataset.test)]

    def draw(key: Key) -> Indices:
        task, name = jnp.arange(tasks, dtype=jnp.int32)[:, None], jnp.arange(classes, dtype=jnp.int32)[None, :]
        slot = jnp.broadcast_to(name, (tasks, classes))
        output = slot if scenario == "domain" else task * classes + name
        own = jnp.arange(outputs, dtype=jnp.int32)[None, :] // classes == task
        active = own if scenario == "task" else jnp.ones((tasks, outputs), bool)
        views = [
            View(jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (tasks, n)), jnp.full((tasks,), n, jnp.int32))
            for n in sizes
        ]
        return Indices(views[0], views[1], output, slot, active)._replace(**transform(key))

    return Stream(dataset, tasks, classes, sizes[0], draw, sizes[1], classes, outputs, scenario)


def _turn(image: Float[Array, "h w *c"], angle: Float[Array, ""]) -> Float[Array, "h w *c"]:
    """The image turned counter-clockwise about its centre; what comes from outside is 0."""
    source = _sources(image.shape, angle)
    sample = lambda plane: jax.scipy.ndimage.map_coordinates(plane, list(source), order=1)
    return sample(image) if image.ndim == 2 else jax.vmap(sample, -1, -1)(image)


def _origins(shape: tuple[int, ...], angle: Float[Array, ""]) -> Int[Array, "pixels"]:
    """For each value of a flat image, the place of the nearest one that it comes from; h · w · c where none does."""
    h, w, *channels = shape
    colours = math.prod(channels)
    row, column = jnp.floor(_sources(shape, angle) + 0.5).astype(jnp.int32)
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    first = (row * w + column)[..., None] * colours + jnp.arange(colours, dtype=jnp.int32)
    return jnp.where(inside[..., None], first, h * w * colours).reshape(-1)


def _sources(shape: tuple[int, ...], angle: Float[Array, ""]) -> Float[Array, "2 h w"]:
    """Row and column that each pixel comes from."""
    h, w = shape[:2]
    middle = jnp.array([(h - 1) / 2, (w - 1) / 2], angle.dtype)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")).astype(angle.dtype)
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.tensordot(jnp.array([[c, s], [-s, c]]), grid - middle[:, None, None], 1) + middle[:, None, None]


def _checked(dataset: Dataset, scenario: str) -> Dataset:
    """The data set, its rows as arrays of JAX, which a compiled program can look into."""
    check(dataset)
    if dataset.train.y.ndim != 1:
        raise ValueError(f"A stream needs class numbers, got train.y of shape {dataset.train.y.shape}.")
    if scenario not in get_args(Scenario):
        raise ValueError(f'scenario must be "class", "domain" or "task", got {scenario!r}.')
    arrays = lambda rows: jax.tree.map(jnp.asarray, rows)
    return dataset._replace(train=arrays(dataset.train), test=arrays(dataset.test))
