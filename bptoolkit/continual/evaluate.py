"""What is asked of one net between two tasks: its accuracies; plasticity and a diagnosis where they are wanted.

Pure functions of the net and of the data, for the compiled programs.  Every answer is the learner's own, by its
`predict`; rows are taken evenly from each task.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bptoolkit.continual.activity import dormant_and_last, weight_norm
from bptoolkit.continual.diagnose import Findings, features_seen, findings
from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.layout import Layout, split_rows
from bptoolkit.continual.streams import Indices, Stream, View, gather
from bptoolkit.learning.fit import Progress
from bptoolkit.learning.learner import Learner
from bptoolkit.learning.losses import correct
from bptoolkit.types import Batch, PyTree, Rows

__all__ = ["Asked", "Evaluated", "Probed", "accuracies", "at_places", "evaluated", "multiple_of"]

EVALUATED = 512  # rows evaluated at once


class Asked(NamedTuple):
    """The net that is asked, and how it sees the data."""

    learner: Learner
    stream: Stream
    layout: Layout
    indices: Indices
    progress: Progress


class Probed(NamedTuple):
    """Of one net, on the rows of `Experiment.probe`; the rank of `last` is found outside the programs, with LAPACK."""

    dormant: Float[Array, ""]
    last: Float[Array, "rows units"]  # what the last hidden layer sends
    weight_norm: Float[Array, ""]


class Evaluated(NamedTuple):
    """What was found; None where it was not asked for."""

    table: Float[Array, "2 tasks"]  # accuracies on test rows, and on as many training rows
    probed: Probed | None
    findings: Findings | None


def evaluated(experiment: Experiment, asked: Asked, data: tuple[Rows, Rows]) -> Evaluated:
    """Ask one net all that the experiment wants to know."""
    (train_rows, test_rows), indices = data, asked.indices
    table = [accuracies(asked, test_rows, indices.test), accuracies(asked, train_rows, indices.train)]
    return Evaluated(
        table=jnp.stack(table),
        probed=None if experiment.probe is None else _probed(asked, test_rows, experiment.probe),
        findings=None if experiment.diagnose is None else _diagnosed(asked, data, experiment.diagnose),
    )


def accuracies(asked: Asked, rows: Rows, view: View) -> Float[Array, "tasks"]:
    """On every task: of all its rows, or of as many as the largest test part has."""
    wanted = min(asked.stream.test_rows_max, view.index.shape[1])
    learner, progress, tasks = asked.learner, asked.progress, asked.stream.tasks

    def hits(batch: Batch) -> Int[Array, ""]:
        logits, _ = learner.predict(progress.memory, progress.params, batch)
        right = jax.vmap(correct)(logits, batch.target, batch.active)
        return jnp.sum(jnp.where(batch.weight > 0, right, False), dtype=jnp.int32)

    totals = _over_rows(asked, rows, view, wanted, hits).reshape(tasks, -1).sum(1, dtype=jnp.int32)
    return totals.astype(jnp.result_type(float)) / jnp.minimum(view.count, wanted).astype(jnp.result_type(float))


def _probed(asked: Asked, rows: Rows, wanted: int) -> Probed:
    """On rows spread evenly over all tasks laid end to end: ⌊n · rows / wanted⌋, in small integers."""
    view, params = asked.indices.test, asked.progress.params
    nth, total = jnp.arange(wanted, dtype=jnp.int32), jnp.sum(view.count, dtype=jnp.int32)
    place = nth * (total // wanted) + nth * (total % wanted) // wanted
    every = jnp.ones(place.shape, bool)
    batch = at_places(asked.stream, asked.layout, rows, asked.indices, view, view.count, place, every)
    dormant, last = dormant_and_last(asked.learner.model, params, batch.x)
    return Probed(dormant, last, weight_norm(params))


def _diagnosed(asked: Asked, data: tuple[Rows, Rows], wanted: int) -> Findings:
    """By up to `wanted` test rows and as many training rows of each task."""
    (train_rows, test_rows), indices, tasks = data, asked.indices, asked.stream.tasks
    memory, params = asked.progress.memory, asked.progress.params
    see = features_seen(asked.learner)

    def seen(batch: Batch) -> Batch:
        none = jnp.zeros((len(batch.x), 0), batch.x.dtype)
        return batch._replace(x=none if see is None else see(memory, params, batch))

    def answered(batch: Batch) -> tuple[Batch, Float[Array, "b k"]]:
        return seen(batch), asked.learner.predict(memory, params, batch)[0]

    def of(rows: Rows, view: View, function: Callable[[Batch], PyTree]) -> PyTree:
        found = _over_rows(asked, rows, view, min(wanted, view.index.shape[1]), function)
        return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), found)

    known = of(train_rows, indices.train, seen)
    new, logits = of(test_rows, indices.test, answered)
    own = _outputs(indices, test_rows)[new.task]
    return findings(logits, known, new, own, tasks)


def _outputs(indices: Indices, rows: Rows) -> Bool[Array, "tasks outputs"]:
    """Which outputs the test rows of each task are labelled with; those of training may have strayed in (`blurry`)."""
    task = jnp.arange(len(indices.active), dtype=jnp.int32)[:, None]
    return jnp.zeros(indices.active.shape, bool).at[task, indices.output[task, rows.y[indices.test.index]]].set(True)


def _over_rows(asked: Asked, rows: Rows, view: View, wanted: int, function: Callable[[Batch], PyTree]) -> PyTree:
    """What the function makes of up to `wanted` rows of each task, evenly spread, in batches that are of one task each.

    Returns:
        Leaves (batches, …), those of a task one behind the other; a row that is not there has weight 0.
    """
    stream, layout, indices, _ = asked.stream, asked.layout, asked.indices, asked.progress
    chunk = multiple_of(min(EVALUATED, wanted), layout.data)

    def one(where):
        task, first = where
        count = view.count[task]
        nth = first + jnp.arange(chunk, dtype=jnp.int32)
        place = jnp.where(count > wanted, (nth.astype(jnp.float32) * (count / wanted)).astype(jnp.int32), nth)
        own = jnp.where(jnp.arange(stream.tasks, dtype=jnp.int32) == task, count, 0)
        counted = (nth < wanted) & (nth < count)
        return function(at_places(stream, layout, rows, indices, view, own, jnp.minimum(place, count - 1), counted))

    tasks = jnp.arange(stream.tasks, dtype=jnp.int32)
    firsts = jnp.arange(0, wanted, chunk, dtype=jnp.int32)
    grid = [axis.reshape(-1) for axis in jnp.meshgrid(tasks, firsts, indexing="ij")]
    return lax.map(one, tuple(grid))


def at_places(
    stream: Stream,
    layout: Layout,
    rows: Rows,
    indices: Indices,
    view: View,
    counts: Int[Array, "tasks"],
    place: Int[Array, "b"],
    counted: Bool[Array, "b"],
) -> Batch:
    """Rows by position in the tasks laid end to end, `counts` rows of each."""
    ends = jnp.cumsum(counts)
    place = jnp.minimum(place, ends[-1] - 1)
    task = jnp.sum(place[:, None] >= ends[None, :], axis=1, dtype=jnp.int32)
    row = view.index[task, place - (ends - counts)[task]]
    batch = gather(rows, stream.data.scale, indices, task, row)
    return split_rows(batch._replace(weight=counted.astype(batch.weight.dtype)), layout)


def multiple_of(number: int, of: int) -> int:
    """The smallest multiple that is no less."""
    return -(-number // of) * of
