"""Run an experiment: one net per seed through the tasks, in programs compiled once.  Knows no files.

The loop over tasks is in Python, where it tells its progress and can be taken up again; all else is compiled.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bptoolkit.continual.cost import flops_of_prediction, time_of_predictions
from bptoolkit.continual.experiment import Cost, Experiment, Result
from bptoolkit.continual.programs import Layout, Programs, choose_layout, weights_of
from bptoolkit.learning.fit import Curves, Progress
from bptoolkit.learning.learner import Curriculum
from bptoolkit.types import Key

__all__ = ["Moment", "RunState", "run"]

CHUNK = 256  # updates a call at most, so that progress can be told


class RunState(NamedTuple):
    """A run between two calls of its programs: hand it to `run` again to go on from there.

    Every array has a leading axis of seeds, with spare rows at its end where devices had to be filled.
    """

    progress: Progress
    tables: tuple[np.ndarray, ...]  # (seeds, 2, tasks): untrained, then after each finished task
    curves: tuple[Curves, ...]  # of each finished task
    finite: tuple[np.ndarray, ...]
    begun: tuple[Curves, ...]  # of the stretches already made of the task under way
    seconds: float  # of training and evaluation so far, without compiling
    layout: Layout


class Moment(NamedTuple):
    """Where a run is, as its hooks see it."""

    task: int  # tasks finished
    tasks: int
    step: int  # updates made in the whole run, per seed
    steps: int
    loss: float  # mean over seeds of the latest stretch
    unconverged: float  # share of settlings; NaN for nets that do not settle
    accuracy: np.ndarray  # (seeds, on) after the last finished task


def run(
    experiment: Experiment,
    key: Key,
    seeds: int | Sequence[int] = 5,
    *,
    on_task: Callable[[Moment, RunState], None] | None = None,
    on_progress: Callable[[Moment, RunState], None] | None = None,
    state: RunState | None = None,
    layout: Layout | None = None,
) -> Result:
    """Train one net per seed on the stream's tasks, one after the other, and test all tasks after each.

    A seed's result depends on `key` and its number alone: the same inside any batch of seeds, to rounding.

    Args:
        experiment: what to run.
        key: a typed PRNG key.
        seeds: how many (0, 1, …), or which.
        on_task: called after every task with where the run is, and the state from which it can go on.
        on_progress: likewise, every few hundred updates.
        state: of an earlier call with the same experiment, key and seeds; its leaves may be NumPy arrays, and its
            `progress` any pytree with the same leaves in the same order.
        layout: how seeds lie on devices; if left out, that of `state` where there are as many devices, else
            `choose_layout`.  Only in one and the same layout does a run taken up again end bit-identical.

    Raises:
        ValueError: no seeds, or the same twice; a model that does not fit the stream; the state of another run.
    """
    names = _seed_numbers(seeds)
    learner, _ = experiment.build({name: jnp.asarray(value) for name, value in experiment.hyper.items()})
    weights = weights_of(learner, key)
    if layout is None and state is not None and state.layout.devices <= len(jax.devices()):
        layout = state.layout
    layout = layout or choose_layout(len(names), len(jax.devices()), weights, learner.model.cell is not None)
    spare = -len(names) % layout.devices
    numbers = jnp.array(names + names[-1:] * spare, jnp.uint32)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)

    chunk = _chunk(experiment.steps)
    programs = Programs(experiment, chunk, layout, keys)
    walk = _Walk(experiment, programs, learner.curriculum, chunk, on_progress)
    state = walk.start() if state is None else _taken_up(state, programs.first, len(names), layout)
    for _ in range(len(state.curves), experiment.stream.tasks):
        state = walk.stage(state)
        if on_task is not None:
            on_task(walk.moment(state, state.curves[-1]), state)

    steps = float(np.mean([np.nanmean(c.settling_steps) for c in state.curves])) if learner.model.cell else 0.0
    params = jax.tree.map(lambda leaf: leaf[: len(names)], state.progress.params)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    example = experiment.stream.data.test.x[:1000].astype(jnp.result_type(float)) / experiment.stream.data.scale
    cost = Cost(
        parameters=weights,
        flops=flops_of_prediction(learner.model, one, example[0], steps),
        ms_per_1000=time_of_predictions(learner.model, one, example),
        seconds=state.seconds,
        compile_seconds=programs.compile_seconds,
        steps=walk.total,
        peak_bytes=programs.peak_bytes,
        layout=str(layout),
    )
    return _result(state, names, params, cost)


class _Walk:
    """One run's way through its stages."""

    def __init__(self, experiment: Experiment, programs: Programs, curriculum: Curriculum, chunk: int, on_progress):
        self.programs, self.curriculum, self.chunk, self.on_progress = programs, curriculum, chunk, on_progress
        self.tasks, self.steps = experiment.stream.tasks, experiment.steps
        self.total = self.made(self.tasks)

    def made(self, tasks: int) -> int:
        """Updates of the first `tasks` stages."""
        return sum(self.curriculum.rounds(k) for k in range(tasks)) * self.steps

    def start(self) -> RunState:
        """Test all tasks before any training."""
        p, began = self.programs, time.perf_counter()
        table = np.asarray(p.evaluate(p.seeds, p.first, p.hyper, p.data))
        return RunState(p.first, (table,), (), (), (), time.perf_counter() - began, p.layout)

    def stage(self, state: RunState) -> RunState:
        """Train on the next task, or on what is left of it; close it, test them all."""
        p, task = self.programs, len(state.curves)
        rounds = self.curriculum.rounds(task)
        if self.curriculum.fresh and not state.begun:
            state = state._replace(progress=p.first)
        for first in range(len(state.begun) * self.chunk, rounds * self.steps, self.chunk):
            state = self.stretch(state, task, first)
            if self.on_progress is not None:
                self.on_progress(self.moment(state, state.begun[-1]), state)
        began = time.perf_counter()
        progress, finite = p.close(p.seeds, state.progress, p.hyper, p.data, jnp.int32(task))
        table = np.asarray(p.evaluate(p.seeds, progress, p.hyper, p.data))
        return state._replace(
            progress=progress,
            tables=(*state.tables, table),
            curves=(*state.curves, _rebinned(state.begun)),
            finite=(*state.finite, np.asarray(finite)),
            begun=(),
            seconds=state.seconds + time.perf_counter() - began,
        )

    def stretch(self, state: RunState, task: int, first: int) -> RunState:
        """As many updates as one call makes."""
        p, began = self.programs, time.perf_counter()
        progress, curve = p.train(p.seeds, state.progress, p.hyper, p.data, jnp.int32(task), jnp.int32(first))
        curve = jax.tree.map(np.asarray, curve)
        seconds = state.seconds + time.perf_counter() - began
        return state._replace(progress=progress, begun=(*state.begun, curve), seconds=seconds)

    def moment(self, state: RunState, curves: Curves) -> Moment:
        loss, unconverged = (_mean(curve[:, -1]) for curve in (curves.loss, curves.unconverged))
        step = self.made(len(state.curves)) + len(state.begun) * self.chunk
        accuracy = state.tables[-1][:, 0]
        return Moment(len(state.curves), self.tasks, step, self.total, loss, unconverged, accuracy)


def _mean(values) -> float:
    """Over the finite ones, so that a seed that diverged hides no other; NaN without any."""
    finite = np.isfinite(values)
    return float(np.mean(values, where=finite)) if finite.any() else float("nan")


def _taken_up(state: RunState, first: Progress, seeds: int, layout: Layout) -> RunState:
    """The state with its progress made and placed like `first`, and as many spare rows as this layout needs.

    Raises:
        ValueError: leaves of other numbers, shapes or dtypes.
    """
    wanted, structure = jax.tree.flatten(first)
    leaves = jax.tree.leaves(state.progress)
    described = [[f"{leaf.dtype}{leaf.shape[1:]}" for leaf in some] for some in (wanted, leaves)]
    if described[0] != described[1] or any(len(leaf) < seeds for leaf in leaves):
        raise ValueError(
            f"The state belongs to another run: this one carries {', '.join(described[0])} for each of {seeds} seeds, "
            f"the state {', '.join(described[1])} for {min(map(len, leaves), default=0)}.\n"
            "Take up a run with the experiment, key and seeds that it began with, or start anew."
        )
    rows = np.minimum(np.arange(len(wanted[0])), seeds - 1)
    fitted = lambda leaf: leaf if len(leaf) == len(rows) else leaf[rows]
    placed = [jax.device_put(fitted(leaf), like.sharding) for leaf, like in zip(leaves, wanted, strict=True)]
    return state._replace(
        progress=jax.tree.unflatten(structure, placed),
        tables=jax.tree.map(fitted, state.tables),
        curves=jax.tree.map(fitted, state.curves),
        finite=jax.tree.map(fitted, state.finite),
        begun=jax.tree.map(fitted, state.begun),
        layout=layout,
    )


def _result(state: RunState, names: tuple[int, ...], params, cost: Cost) -> Result:
    tables = np.stack(state.tables, axis=2)[: len(names)]  # (seeds, 2, untrained and after, on)
    return Result(
        accuracy=tables[:, 0, 1:],
        train_accuracy=tables[:, 1, 1:],
        untrained=tables[:, 0, 0],
        untrained_train=tables[:, 1, 0],
        curves=jax.tree.map(lambda *stages: np.stack(stages, axis=1)[: len(names)], *state.curves),
        finite=np.stack(state.finite, axis=1)[: len(names)],
        seeds=names,
        params=jax.tree.map(np.asarray, params),
        cost=cost,
    )


def _rebinned(curves: tuple[Curves, ...]) -> Curves:
    """The curves of a stage's chunks as one of the length of the first, whatever the number of rounds."""

    def one(*pieces: np.ndarray) -> np.ndarray:
        whole = np.concatenate(pieces, axis=1)
        return whole.reshape(len(whole), pieces[0].shape[1], -1).mean(-1)

    return jax.tree.map(one, *curves)


def _chunk(steps: int) -> int:
    """The largest divisor of steps up to CHUNK; all of them where that would be short."""
    best = max(d for d in range(1, min(steps, CHUNK) + 1) if steps % d == 0)
    return best if 8 * best >= min(steps, CHUNK) else steps


def _seed_numbers(seeds: int | Sequence[int]) -> tuple[int, ...]:
    names = tuple(range(seeds)) if isinstance(seeds, int) else tuple(int(s) for s in seeds)
    if not names or min(names) < 0 or len(set(names)) < len(names):
        raise ValueError(f"seeds must be a positive number, or different whole numbers from 0, got {seeds}.")
    return names
