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
    """A run between two tasks: hand it to `run` again to go on from there."""

    progress: Progress
    tables: tuple[np.ndarray, ...]  # (seeds, 2, tasks): untrained, then after each task
    curves: tuple[Curves, ...]
    finite: tuple[np.ndarray, ...]


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
    on_progress: Callable[[Moment], None] | None = None,
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
        on_progress: called every few hundred updates.
        state: of an earlier call with the same experiment, key and seeds.
        layout: how seeds lie on devices; `choose_layout` if left out.

    Raises:
        ValueError: no seeds, or the same twice; a model that does not fit the stream.
    """
    names = _seed_numbers(seeds)
    learner, _ = experiment.build({name: jnp.asarray(value) for name, value in experiment.hyper.items()})
    weights = weights_of(learner, key)
    layout = layout or choose_layout(len(names), len(jax.devices()), weights, learner.model.cell is not None)
    spare = -len(names) % layout.devices
    numbers = jnp.array(names + names[-1:] * spare, jnp.uint32)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)

    chunk = _chunk(experiment.steps)
    programs = Programs(experiment, chunk, layout, keys)
    began = time.perf_counter()
    if state is None:
        table = np.asarray(programs.evaluate(programs.seeds, programs.first, programs.hyper, programs.data))
        state = RunState(programs.first, (table,), (), ())
    walk = _Walk(experiment, programs, learner.curriculum, chunk, on_progress)
    for task in range(len(state.curves), experiment.stream.tasks):
        state = walk.stage(state, task)
        if on_task is not None:
            on_task(walk.moment(state, state.curves[-1]), state)
    seconds = time.perf_counter() - began

    steps = float(np.mean([np.nanmean(c.settling_steps) for c in state.curves])) if learner.model.cell else 0.0
    params = jax.tree.map(lambda leaf: leaf[: len(names)], state.progress.params)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    example = experiment.stream.data.test.x[:1000].astype(jnp.result_type(float)) / experiment.stream.data.scale
    cost = Cost(
        parameters=weights,
        flops=flops_of_prediction(learner.model, one, example[0], steps),
        ms_per_1000=time_of_predictions(learner.model, one, example),
        seconds=seconds,
        compile_seconds=programs.compile_seconds,
        steps=walk.total,
        peak_bytes=programs.peak_bytes,
        layout=str(layout),
    )
    return _result(state, names, params, cost)


class _Walk:
    """One run's way through its stages; counts the updates, for the hooks."""

    def __init__(self, experiment: Experiment, programs: Programs, curriculum: Curriculum, chunk: int, on_progress):
        self.programs, self.curriculum, self.chunk, self.on_progress = programs, curriculum, chunk, on_progress
        self.tasks, self.steps = experiment.stream.tasks, experiment.steps
        self.total = sum(curriculum.rounds(k) for k in range(self.tasks)) * self.steps
        self.made = 0

    def stage(self, state: RunState, task: int) -> RunState:
        """Train on one task, close it, test them all."""
        p, k = self.programs, jnp.int32(task)
        progress = p.first if self.curriculum.fresh else state.progress
        curves: list[Curves] = []
        self.made = sum(self.curriculum.rounds(j) for j in range(task)) * self.steps
        for first in range(0, self.curriculum.rounds(task) * self.steps, self.chunk):
            progress, curve = p.train(p.seeds, progress, p.hyper, p.data, k, jnp.int32(first))
            curves.append(jax.tree.map(np.asarray, curve))
            self.made += self.chunk
            if self.on_progress is not None:
                self.on_progress(self.moment(state, curve))
        progress, finite = p.close(p.seeds, progress, p.hyper, p.data, k)
        table = np.asarray(p.evaluate(p.seeds, progress, p.hyper, p.data))
        whole = _rebinned(curves)
        return RunState(progress, (*state.tables, table), (*state.curves, whole), (*state.finite, np.asarray(finite)))

    def moment(self, state: RunState, curves: Curves) -> Moment:
        loss, unconverged = (float(np.mean(np.asarray(c)[:, -1])) for c in (curves.loss, curves.unconverged))
        accuracy = state.tables[-1][:, 0]
        return Moment(len(state.curves), self.tasks, self.made, self.total, loss, unconverged, accuracy)


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


def _rebinned(curves: list[Curves]) -> Curves:
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
