"""Choose numbers such as a strength, on validation rows of the first tasks; test rows are never looked at.

Validation rows are training rows that are kept out of training.  Choosing on the first k tasks of a stream, and with
other seeds than those reported, follows Chaudhry et al. (2019), ICLR, "Efficient lifelong learning with A-GEM".
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.lanes import Grid
from bptoolkit.continual.layout import Layout
from bptoolkit.continual.metrics import average_accuracy
from bptoolkit.continual.programs import numbers_read
from bptoolkit.continual.run import run_grid
from bptoolkit.continual.streams import Indices, Stream, View, counted, padded
from bptoolkit.counts import check_whole
from bptoolkit.types import Key

__all__ = ["Choice", "choose", "held_out", "how_chosen"]

FEWEST = 2  # rows of a task, of which one is kept out


class Choice(NamedTuple):
    """What was chosen, and on what grounds."""

    values: dict[str, Any]  # by name, of the experiment's hyper
    scores: dict[tuple[Any, ...], np.ndarray]  # by point of the grid: one a seed, NaN for one that diverged
    how: str  # a sentence for the record


def choose(
    experiment: Experiment,
    grid: Grid,
    key: Key,
    seeds: int | Sequence[int] = 3,
    *,
    tasks: int | None = None,
    every: int = 10,
    score: Callable[[Any], np.ndarray] = average_accuracy,
    layout: Layout = Layout(),
) -> Choice:
    """The point of a grid with the highest mean score on validation rows; of equals, the first.

    `replace(experiment, hyper={**experiment.hyper, **choice.values})` is the experiment with what was chosen.

    Args:
        experiment: whose learner or optimiser is made from its `hyper`.
        grid: names in it, and the values of each; all are trained in one compiled program.
        key, seeds: take others than those that will be reported, so that no seed chooses for itself.
        tasks, every: as in `held_out`.
        score: of a result, one value a seed; more is better.
        layout: as for `run`.

    Raises:
        ValueError: as `held_out` and `run_grid`; a number that neither learner nor optimiser reads; a score that is
            NaN everywhere; or every point has a seed that diverged.
    """
    if unread := sorted(set(grid) - numbers_read(experiment)):
        raise ValueError(f"Nothing reads {', '.join(unread)}: make learner or optimizer a function of hyper that does.")
    stream = held_out(experiment.stream, every, tasks)
    results = run_grid(replace(experiment, stream=stream), grid, key, seeds, layout=layout)
    scores = {point: np.where(result.finite.all(1), score(result), np.nan) for point, result in results.items()}
    if all(result.finite.all() and np.isnan(scores[point]).all() for point, result in results.items()):
        raise ValueError(f"The score must be a number, got NaN everywhere: is it defined for {stream.tasks} tasks?")
    means = np.array([values.mean() for values in scores.values()])
    if np.isnan(means).all():
        raise ValueError("A choice needs a point at which no seed diverges, got none. Try smaller rates or strengths.")
    best = list(scores)[int(np.nanargmax(means))]
    used = len(next(iter(scores.values())))
    return Choice(dict(zip(grid, best, strict=True)), scores, how_chosen(stream.tasks, every, used))


def how_chosen(tasks: int, every: int, seeds: int) -> str:
    """The sentence that a record gives on a choice."""
    first = "the first task" if tasks == 1 else f"the first {tasks} tasks"
    return (
        f"the highest mean over {seeds} seeds on validation rows, one in {every} of the training rows of {first}; "
        "no test row was looked at"
    )


def held_out(stream: Stream, every: int = 10, tasks: int | None = None) -> Stream:
    """The first tasks of a stream, with one in `every` training rows kept out of training to be tested on.

    Every seed deals the same tasks as in the whole stream.  The rows kept out are spread evenly over a task's classes;
    they are index views of the training part, so that test rows are not even in reach.  Where tasks share rows, as
    those of `online(rotated(…), rows)` may, a row that one task keeps out is left out of all others' training too.

    Args:
        stream: the whole one.
        every: at least 2; the first, every-th, 2·every-th … training row of each task is kept out.
        tasks: how many from the first on; all if left out.

    Raises:
        ValueError: `every` below 2, or more than the largest task has rows; tasks outside 1 … those of the stream; a
            task that would have no row left to train on, in the dealing of one seed.
    """
    kept = stream.tasks if tasks is None else tasks
    check_whole(every=every, tasks=tasks)
    if kept > stream.tasks:
        raise ValueError(f"tasks must be in 1 … {stream.tasks}, those of the stream, got {tasks}.")
    if not FEWEST <= every <= stream.rows_max:
        raise ValueError(f"every must be in {FEWEST} … {stream.rows_max}, the rows of the largest task, got {every}.")
    fewest = int(np.min(stream.draw(jax.random.key(0)).train.count))
    if fewest < FEWEST:
        raise ValueError(f"Each task needs {FEWEST} rows, one to train on and one to keep out, got one of {fewest}.")
    place = np.arange(stream.rows_max, dtype=np.int32)
    out, within = place[place % every == 0], place[place % every != 0]

    def draw(key: Key) -> Indices:
        some = jax.tree.map(lambda leaf: leaf[:kept], stream.draw(key))
        index, count = some.train
        tested = -(-count // every)
        test = View(index[:, out], tested.astype(jnp.int32))
        train = _without(View(index[:, within], count - tested), test, len(stream.data.train.y))
        return some._replace(train=train, test=test)

    if int(np.min(draw(jax.random.key(0)).train.count)) < 1:
        raise ValueError("Each task needs rows to train on, got one whose rows are all kept out. Keep out fewer.")
    data = stream.data._replace(test=stream.data.train)
    return stream._replace(data=data, tasks=kept, draw=draw, rows_max=len(within), test_rows_max=len(out))


def _without(train: View, out: View, rows: int) -> View:
    """The training rows, in their order, without those of a data set of so many rows that some task keeps out."""
    kept_out = jnp.zeros(rows, bool).at[out.index].max(counted(out))
    stays = counted(train) & ~kept_out[train.index]
    index = jnp.take_along_axis(train.index, jnp.argsort(~stays, axis=1, stable=True), axis=1)
    return padded(View(index, jnp.sum(stays, axis=1, dtype=jnp.int32)))
