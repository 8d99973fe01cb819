"""The four compiled programs of an experiment: start, train, close a task, evaluate; each over all nets at once.

Data, seeds and numbers are arguments, never constants, so experiments that differ in numbers share compiled programs,
and a whole grid of numbers is one.  Nets are independent: over several devices they are shared out, on each device
they are stacked by `vmap`, or done one after the other by `lax.map`.  See `layout` for the rule.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from bptoolkit.continual.evaluate import Asked, Evaluated, accuracies, at_places, evaluated, multiple_of
from bptoolkit.continual.experiment import Experiment, Hyper
from bptoolkit.continual.lanes import Lanes
from bptoolkit.continual.layout import SEED, WHOLE, Layout, fetch, mesh_of, over_lanes, place
from bptoolkit.continual.streams import Indices, Stream
from bptoolkit.learning.fit import Progress, train
from bptoolkit.learning.learner import Learner, Task, check_outputs
from bptoolkit.learning.sampling import positions
from bptoolkit.types import Batch, Key

__all__ = ["Lane", "Programs"]

BINS = 20  # points of each curve that one call of `train` reports, at most


class Lane(NamedTuple):
    """What belongs to one net throughout."""

    indices: Indices
    hyper: Hyper
    key: Key


class Programs:
    """Compiles on construction; `compile_seconds` tells how long that took, `peak_bytes` the largest temporary."""

    def __init__(self, experiment: Experiment, chunk: int, layout: Layout, lanes: Lanes):
        if experiment.batch is not None and experiment.batch % layout.data:
            raise ValueError(
                f"batch must be a multiple of the {layout.data} devices that share its rows, got {experiment.batch}."
            )
        stream = experiment.stream
        self.layout, self.mesh = layout, mesh_of(layout)
        self.compile_seconds, self.peak_bytes = 0.0, 0
        self.probes, self.diagnoses = experiment.probe is not None, experiment.diagnose is not None
        self.data = place((stream.data.train, stream.data.test), self.mesh, WHOLE)
        task, number = np.int32(0), np.int32(0)

        # One seed at a time: jaxlib 0.10's batched LAPACK (orthogonal first weights) can block for ever on two devices.
        given = place((lanes.keys, lanes.hyper), self.mesh, SEED)
        self.start = self._compile(partial(_start, experiment), 2, given, stack=False)
        self.lanes, self.first = self.start(*given)
        own = (self.lanes, self.first)
        self.train = self._compile(partial(_train, experiment, chunk, layout), 2, (*own, self.data, task, number))
        self.close = self._compile(partial(_close, experiment, layout), 2, (*own, self.data, task))
        self.evaluate = self._compile(partial(_evaluate, experiment, layout), 2, (*own, self.data))
        began = time.perf_counter()
        fetch(place(np.zeros(layout.devices or 1, np.float32), self.mesh, SEED))  # by now all processes have compiled
        self.compile_seconds += time.perf_counter() - began

    def _compile(self, function: Callable, lanes: int, arguments: tuple, stack: bool = True) -> Callable:
        """The function over a leading axis of nets in its first `lanes` arguments, compiled for these shapes."""
        began = time.perf_counter()
        layout = self.layout._replace(stacked=stack and self.layout.stacked)
        on_seed, whole = (NamedSharding(self.mesh, spec) for spec in (SEED, WHOLE))
        given = tuple(on_seed if i < lanes else whole for i in range(len(arguments)))
        mapped = over_lanes(function, lanes, layout, self.mesh)
        compiled = jax.jit(mapped, in_shardings=given, out_shardings=on_seed).lower(*arguments).compile()
        self.compile_seconds += time.perf_counter() - began
        memory = compiled.memory_analysis()
        self.peak_bytes = max(self.peak_bytes, getattr(memory, "temp_size_in_bytes", 0))
        return compiled


def _start(experiment: Experiment, key: Key, hyper: Hyper) -> tuple[Lane, Progress]:
    """Draw the tasks and the first weights."""
    learner, optimizer = experiment.build(hyper)
    draw_key, init_key, memory_key, train_key = jax.random.split(key, 4)
    params = learner.model.init(init_key)
    described = experiment.described()
    check_outputs(learner.model, params, described.example)
    memory = learner.init(params, described, memory_key)
    lane = Lane(experiment.stream.draw(draw_key), hyper, train_key)
    return lane, Progress(params, optimizer.init(params), memory)


def _train(experiment: Experiment, chunk: int, layout: Layout, lane: Lane, progress: Progress, data, task, first):
    """`chunk` updates of a stage, from its step `first` on: the curves in at most BINS points, and tests between."""
    learner, optimizer = experiment.build(lane.hyper)
    stream, (rows, test_rows) = experiment.stream, data
    sources = learner.curriculum.sources(jnp.arange(stream.tasks, dtype=jnp.int32), task)
    counts = jnp.where(sources, lane.indices.train.count, 0)
    batch = multiple_of(_all_rows(stream, learner), layout.data) if experiment.batch is None else experiment.batch

    def draw(step: Int[Array, ""], key: Key) -> Batch:
        place, counted = positions(key, step, jnp.sum(counts, dtype=jnp.int32), batch, experiment.replacement)
        return at_places(stream, layout, rows, lane.indices, lane.indices.train, counts, place, counted)

    begin = partial(_begin, experiment, lane, task)
    progress = lax.cond(first == 0, begin, lambda progress: progress, progress)
    stage_key = jax.random.fold_in(lane.key, 2 * task)
    stretch = partial(train, learner, optimizer, draw)
    binned = partial(jax.tree.map, partial(_binned, bins=curve_points(chunk)))
    every = experiment.evaluate_every
    if every is None:
        progress, curves = stretch(progress, stage_key, chunk, first)
        return progress, binned(curves), jnp.zeros((0, stream.tasks))

    def tested(progress: Progress, first: Int[Array, ""]):
        same_key = jax.random.clone(stage_key)  # of all stretches: `train` folds the number of each step into it
        progress, curves = stretch(progress, same_key, every, first)
        asked = _asked(experiment, layout, lane, progress)
        return progress, (curves, accuracies(asked, test_rows, lane.indices.test))

    progress, (curves, within) = lax.scan(tested, progress, first + jnp.arange(0, chunk, every, dtype=jnp.int32))
    return progress, binned(jax.tree.map(jnp.ravel, curves)), within


def _begin(experiment: Experiment, lane: Lane, task: Int[Array, ""], progress: Progress) -> Progress:
    """Start a task: what the learner does then, and an optimiser that forgets, where either asks for it."""
    learner, optimizer = experiment.build(lane.hyper)
    start_key = jax.random.fold_in(lane.key, 2 * experiment.stream.tasks + task)
    params, memory = learner.start_task(progress.memory, progress.params, task, start_key)
    restart = experiment.reset_optimizer or learner.curriculum.reset_optimizer
    return Progress(params, optimizer.init(params) if restart else progress.opt_state, memory)


def _all_rows(stream: Stream, learner: Learner) -> int:
    """As many rows as the largest stage can have."""
    with jax.ensure_compile_time_eval():
        tasks = jnp.arange(stream.tasks, dtype=jnp.int32)
        most = max(int(jnp.sum(learner.curriculum.sources(tasks, stage))) for stage in tasks)
    return most * stream.rows_max


def _close(
    experiment: Experiment, layout: Layout, lane: Lane, progress: Progress, data, task
) -> tuple[Progress, Bool[Array, ""]]:
    """End a task: what the learner does then, and whether all weights are finite."""
    learner, _ = experiment.build(lane.hyper)
    stream, (rows, _) = experiment.stream, data
    view = lane.indices.train
    own = jnp.where(jnp.arange(stream.tasks, dtype=jnp.int32) == task, view.count, 0)
    counted = lambda place: place < view.count[task]
    ended = Task(
        number=task,
        count=view.count[task],
        rows_max=stream.rows_max,
        rows=lambda place: at_places(stream, layout, rows, lane.indices, view, own, place, counted(place)),
        slot=lambda place: lane.indices.slot[task, rows.y[view.index[task, place]]],
    )
    end_key = jax.random.fold_in(lane.key, 2 * task + 1)
    params, memory = learner.end_task(progress.memory, progress.params, ended, end_key)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
    return progress._replace(params=params, memory=memory), finite


def _evaluate(experiment: Experiment, layout: Layout, lane: Lane, progress: Progress, data) -> Evaluated:
    """All that is asked of the net between two tasks."""
    return evaluated(experiment, _asked(experiment, layout, lane, progress), data)


def _asked(experiment: Experiment, layout: Layout, lane: Lane, progress: Progress) -> Asked:
    learner, _ = experiment.build(lane.hyper)
    return Asked(learner, experiment.stream, layout, lane.indices, progress)


def _binned(curve: Float[Array, "steps"], bins: int) -> Float[Array, "bins"]:
    """Means over equal stretches."""
    return curve.reshape(bins, -1).mean(1)


def curve_points(steps: int) -> int:
    """How many a curve of so many steps has: the most up to BINS that divide it, so that no step is left out."""
    return max(bins for bins in range(1, min(BINS, steps) + 1) if steps % bins == 0)


def numbers_read(experiment: Experiment) -> set[str]:
    """Which of its numbers an experiment reads when its programs are traced; the others make no difference to it."""
    read: set[str] = set()
    noting = lambda make: make if isinstance(make, tuple) else lambda hyper: make(_Noted(hyper, read))
    watched = replace(experiment, learner=noting(experiment.learner), optimizer=noting(experiment.optimizer))
    stream, layout, task = experiment.stream, Layout(1, False), np.int32(0)
    data = (stream.data.train, stream.data.test)
    numbers = jax.tree.map(jnp.asarray, dict(experiment.hyper))
    own = jax.eval_shape(partial(_start, watched), jax.random.key(0), numbers)
    chunk = experiment.evaluate_every or 1
    jax.eval_shape(partial(_train, watched, chunk, layout), *own, data, task, task)
    jax.eval_shape(partial(_close, watched, layout), *own, data, task)
    jax.eval_shape(partial(_evaluate, watched, layout), *own, data)
    return read


def check_rows(indices: Indices, lanes: Lanes) -> None:
    """Raise where a task was dealt no rows, to train on or to test with."""
    counts = fetch((indices.train.count, indices.test.count))
    for name, count in zip(("training", "test"), counts, strict=True):
        empty = np.argwhere(np.asarray(count) < 1)
        if len(empty):
            lane, task = map(int, empty[0])
            raise ValueError(
                f"Every task must have {name} rows, got none in task {task + 1} of seed "
                f"{lanes.seeds[lane % len(lanes.seeds)]}. Mend the stream's draw, or take fewer tasks."
            )


class _Noted(Mapping):
    """Numbers that note which of them are read."""

    def __init__(self, hyper: Hyper, read: set[str]):
        self.hyper, self.read = hyper, read

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return self.hyper[name]

    def __iter__(self):
        return iter(self.hyper)

    def __len__(self) -> int:
        return len(self.hyper)


def weights_of(learner: Learner, key: Key) -> int:
    """How many numbers the model has to learn."""
    shapes: Any = jax.eval_shape(learner.model.init, key)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
