"""The four compiled programs of an experiment: start, train, close a task, evaluate; each over all seeds at once.

Data and numbers are arguments, never constants, so experiments that differ in numbers share compiled programs.
Seeds are independent: over several devices they are sharded, on each device they are stacked by `vmap`, or done one
after the other by `lax.map`.  See `choose_layout` for the rule.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from bptoolkit import trees
from bptoolkit.continual.experiment import Experiment, Hyper
from bptoolkit.continual.streams import Indices, Stream, View, gather, spec
from bptoolkit.learning.fit import Progress, train
from bptoolkit.learning.learner import Learner, Task, check_outputs
from bptoolkit.learning.losses import correct
from bptoolkit.learning.sampling import positions
from bptoolkit.types import Batch, Key, Rows

__all__ = ["Layout", "Programs", "choose_layout"]

EVALUATED = 512  # rows evaluated at once
BINS = 20  # points of each curve that one call of `train` reports
LARGE = 2**16  # weights beyond which one net's products fill a core by themselves


class Layout(NamedTuple):
    """How seeds lie on devices."""

    devices: int
    stacked: bool  # by vmap, else one after the other

    def __str__(self) -> str:
        """For the record."""
        return f"{self.devices} device{'s' * (self.devices > 1)}, seeds {'stacked' if self.stacked else 'in turn'}"


class Seeds(NamedTuple):
    """What belongs to each seed throughout."""

    indices: Indices
    key: Key


def choose_layout(seeds: int, devices: int, weights: int, settles: bool) -> Layout:
    """Shard seeds over all devices; on each, stack small feed-forward nets and do all others in turn.

    Stacking saves the overhead of small operations.  Large nets have none to save, and nets that settle would all
    wait for the slowest seed.  (Figures: `scripts/bench_forgetting.py`.)
    """
    return Layout(max(1, min(seeds, devices)), weights < LARGE and not settles)


class Programs:
    """Compiles on construction; `compile_seconds` tells how long that took, `peak_bytes` the largest temporary."""

    def __init__(self, experiment: Experiment, chunk: int, layout: Layout, keys: Key):
        stream = experiment.stream
        self.experiment, self.layout = experiment, layout
        self.compile_seconds, self.peak_bytes = 0.0, 0
        self.data = (stream.data.train, stream.data.test)
        self.hyper = jax.tree.map(jnp.asarray, dict(experiment.hyper))
        task, number = jnp.int32(0), jnp.int32(0)

        # One seed at a time: jaxlib 0.10's batched LAPACK (orthogonal first weights) can block for ever on two devices.
        self.start = self._compile(partial(_start, experiment), 1, (keys, self.hyper), stack=False)
        self.seeds, self.first = self.start(keys, self.hyper)
        stacked = (self.seeds, self.first)
        rest = (self.hyper, self.data, task)
        self.train = self._compile(partial(_train, experiment, chunk), 2, (*stacked, *rest, number))
        self.close = self._compile(partial(_close, experiment), 2, (*stacked, *rest))
        self.evaluate = self._compile(partial(_evaluate, experiment), 2, (*stacked, *rest[:-1]))

    def _compile(self, function: Callable, stacked: int, arguments: tuple, stack: bool = True) -> Callable:
        """The function over a leading axis of seeds in its first `stacked` arguments, compiled for these shapes."""
        began = time.perf_counter()
        layout = self.layout._replace(stacked=stack and self.layout.stacked)
        compiled = jax.jit(_over_seeds(function, stacked, layout)).lower(*arguments).compile()
        self.compile_seconds += time.perf_counter() - began
        memory = compiled.memory_analysis()
        self.peak_bytes = max(self.peak_bytes, getattr(memory, "temp_size_in_bytes", 0))
        return compiled


def _over_seeds(function: Callable, stacked: int, layout: Layout) -> Callable:
    def on_one_device(*arguments):
        seeds, shared = arguments[:stacked], arguments[stacked:]
        one = lambda seed: function(*seed, *shared)
        return jax.vmap(one)(seeds) if layout.stacked else lax.map(one, seeds)

    if layout.devices == 1:
        return on_one_device
    mesh = Mesh(np.array(jax.devices()[: layout.devices]), ("seed",))
    sharded, whole = PartitionSpec("seed"), PartitionSpec()

    def on_all(*arguments):
        specs = tuple(sharded if i < stacked else whole for i in range(len(arguments)))
        return jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=sharded, check_vma=False)(*arguments)

    return on_all


def _start(experiment: Experiment, key: Key, hyper: Hyper) -> tuple[Seeds, Progress]:
    """Draw the tasks and the first weights."""
    learner, optimizer = experiment.build(hyper)
    draw_key, init_key, memory_key, train_key = jax.random.split(key, 4)
    params = learner.model.init(init_key)
    described = spec(experiment.stream)
    check_outputs(learner.model, params, described.example)
    memory = learner.init(params, described, memory_key)
    return Seeds(experiment.stream.draw(draw_key), train_key), Progress(params, optimizer.init(params), memory)


def _train(experiment: Experiment, chunk: int, seeds: Seeds, progress: Progress, hyper, data, task, first):
    """`chunk` updates of a stage, from its step `first` on; the curves in at most BINS points."""
    learner, optimizer = experiment.build(hyper)
    stream, (rows, _) = experiment.stream, data
    sources = learner.curriculum.sources(jnp.arange(stream.tasks, dtype=jnp.int32), task)
    counts = jnp.where(sources, seeds.indices.train.count, 0)
    batch = _all_rows(stream, learner) if experiment.batch is None else experiment.batch

    def draw(step: Int[Array, ""], key: Key) -> Batch:
        place, counted = positions(key, step, jnp.sum(counts, dtype=jnp.int32), batch, experiment.replacement)
        return _at(stream, rows, seeds.indices, seeds.indices.train, counts, place, counted)

    restart = experiment.reset_optimizer & (first == 0)
    fresh = progress._replace(opt_state=optimizer.init(progress.params))
    progress = trees.choose(restart, fresh, progress) if experiment.reset_optimizer else progress
    stage_key = jax.random.fold_in(seeds.key, 2 * task)
    progress, curves = train(learner, optimizer, draw, progress, stage_key, chunk, first)
    return progress, jax.tree.map(partial(_binned, bins=min(BINS, chunk)), curves)


def _all_rows(stream: Stream, learner: Learner) -> int:
    """As many rows as the largest stage can have."""
    with jax.ensure_compile_time_eval():
        tasks = jnp.arange(stream.tasks, dtype=jnp.int32)
        most = max(int(jnp.sum(learner.curriculum.sources(tasks, stage))) for stage in tasks)
    return most * stream.rows_max


def _close(
    experiment: Experiment, seeds: Seeds, progress: Progress, hyper, data, task
) -> tuple[Progress, Bool[Array, ""]]:
    """End a task: what the learner does then, and whether all weights are finite."""
    learner, _ = experiment.build(hyper)
    stream, (rows, _) = experiment.stream, data
    view = seeds.indices.train
    own = jnp.where(jnp.arange(stream.tasks, dtype=jnp.int32) == task, view.count, 0)
    counted = lambda place: place < view.count[task]
    ended = Task(
        number=task,
        count=view.count[task],
        rows_max=stream.rows_max,
        rows=lambda place: _at(stream, rows, seeds.indices, view, own, place, counted(place)),
        slot=lambda place: seeds.indices.slot[task, rows.y[view.index[task, place]]],
    )
    end_key = jax.random.fold_in(seeds.key, 2 * task + 1)
    params, memory = learner.end_task(progress.memory, progress.params, ended, end_key)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
    return progress._replace(params=params, memory=memory), finite


def _evaluate(experiment: Experiment, seeds: Seeds, progress: Progress, hyper, data) -> Float[Array, "2 tasks"]:
    """Accuracy on every task: of its test rows, and of as many of its training rows, evenly spread."""
    learner, _ = experiment.build(hyper)
    stream, (train_rows, test_rows) = experiment.stream, data
    score = partial(_accuracies, learner, stream, seeds.indices, progress)
    return jnp.stack([score(test_rows, seeds.indices.test), score(train_rows, seeds.indices.train)])


def _accuracies(
    learner: Learner, stream: Stream, indices: Indices, progress: Progress, rows: Rows, view: View
) -> Float[Array, "tasks"]:
    wanted = min(stream.test_rows_max, view.index.shape[1])
    chunk = min(EVALUATED, wanted)

    def hits(where) -> Int[Array, ""]:
        task, first = where
        count = view.count[task]
        nth = first + jnp.arange(chunk, dtype=jnp.int32)
        place = jnp.where(count > wanted, (nth.astype(jnp.float32) * (count / wanted)).astype(jnp.int32), nth)
        own = jnp.where(jnp.arange(stream.tasks, dtype=jnp.int32) == task, count, 0)
        counted = (nth < wanted) & (nth < count)
        batch = _at(stream, rows, indices, view, own, jnp.minimum(place, count - 1), counted)
        logits, _ = learner.predict(progress.memory, progress.params, batch)
        right = jax.vmap(correct)(logits, batch.target, batch.active)
        return jnp.sum(jnp.where(counted, right, False), dtype=jnp.int32)

    tasks = jnp.arange(stream.tasks, dtype=jnp.int32)
    firsts = jnp.arange(0, wanted, chunk, dtype=jnp.int32)
    grid = [axis.reshape(-1) for axis in jnp.meshgrid(tasks, firsts, indexing="ij")]
    totals = lax.map(hits, tuple(grid)).reshape(stream.tasks, -1).sum(1, dtype=jnp.int32)
    return totals.astype(jnp.result_type(float)) / jnp.minimum(view.count, wanted).astype(jnp.result_type(float))


def _at(stream: Stream, rows: Rows, indices: Indices, view: View, counts, place, counted) -> Batch:
    """Rows by position in the tasks laid end to end, `counts` rows of each."""
    ends = jnp.cumsum(counts)
    place = jnp.minimum(place, ends[-1] - 1)
    task = jnp.sum(place[:, None] >= ends[None, :], axis=1, dtype=jnp.int32)
    row = view.index[task, place - (ends - counts)[task]]
    batch = gather(rows, stream.data.scale, indices, task, row)
    return batch._replace(weight=counted.astype(batch.weight.dtype))


def _binned(curve: Float[Array, "steps"], bins: int) -> Float[Array, "bins"]:
    """Means over equal stretches; a last, shorter one is left out."""
    length = curve.shape[0] // bins
    return curve[: bins * length].reshape(bins, length).mean(1)


def weights_of(learner: Learner, key: Key) -> int:
    """How many numbers the model has to learn."""
    shapes: Any = jax.eval_shape(learner.model.init, key)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
