"""A run's way through its tasks: the loop that stays in Python, tells its progress and can be taken up again."""

import time
from typing import NamedTuple

import jax
import numpy as np

from bptoolkit.continual.activity import effective_rank
from bptoolkit.continual.evaluate import Evaluated
from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.layout import SEED, Layout, fetch, place
from bptoolkit.continual.programs import Programs
from bptoolkit.learning.fit import Curves, Progress
from bptoolkit.learning.learner import Curriculum

__all__ = ["Moment", "RunState", "Walk", "read", "taken_up", "updates_a_call"]

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
    within: tuple[np.ndarray, ...] = ()  # (seeds, tasks): test accuracies between, and those after each finished task
    probed: tuple[np.ndarray, ...] = ()  # (seeds, 3): the fields of Plasticity, as many as there are tables
    diagnosed: tuple[np.ndarray, ...] = ()  # (seeds, 6, tasks): the fields of Findings, likewise


# Arrays of a RunState beside its progress.
TOLD = ("tables", "curves", "finite", "begun", "within", "probed", "diagnosed")


class Moment(NamedTuple):
    """Where a run is, as its hooks see it; rows that only fill devices are left out."""

    task: int  # tasks finished
    tasks: int
    step: int  # updates made in the whole run, per seed
    steps: int
    loss: float  # mean over seeds of the latest stretch
    unconverged: float  # share of settlings; NaN for nets that do not settle
    accuracy: np.ndarray  # (seeds, on) after the last finished task


class Walk:
    """One run's way through its stages."""

    def __init__(
        self, experiment: Experiment, programs: Programs, curriculum: Curriculum, chunk: int, nets: int, on_progress
    ):
        self.programs, self.curriculum, self.chunk, self.on_progress = programs, curriculum, chunk, on_progress
        self.nets = nets  # no spare ones among them
        self.tasks, self.steps = experiment.stream.tasks, experiment.steps
        self.total, self.every = self.made(self.tasks), experiment.evaluate_every

    def made(self, tasks: int) -> int:
        """Updates of the first `tasks` stages."""
        return sum(self.curriculum.rounds(k) for k in range(tasks)) * self.steps

    def start(self) -> RunState:
        """Test all tasks before any training."""
        p, began = self.programs, time.perf_counter()
        found = read(p.evaluate(p.lanes, p.first, p.data))
        seconds = time.perf_counter() - began
        return _told(RunState(p.first, (), (), (), (), seconds, p.layout), found)

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
        progress, finite = p.close(p.lanes, state.progress, p.data, np.int32(task))
        finite = read(finite)  # before anything else is started: exchanges of two programs must not overlap
        found = read(p.evaluate(p.lanes, progress, p.data))
        return _told(state, found)._replace(
            progress=progress,
            seconds=state.seconds + time.perf_counter() - began,
            curves=(*state.curves, _rebinned(state.begun)),
            finite=(*state.finite, finite),
            begun=(),
            within=(*state.within[:-1], found.table[:, 0]) if self.every else (),
        )

    def stretch(self, state: RunState, task: int, first: int) -> RunState:
        """As many updates as one call makes."""
        p, began = self.programs, time.perf_counter()
        progress, curve, within = p.train(p.lanes, state.progress, p.data, np.int32(task), np.int32(first))
        curve, within = read((curve, within))
        return state._replace(
            progress=progress,
            begun=(*state.begun, curve),
            seconds=state.seconds + time.perf_counter() - began,
            within=(*state.within, *np.moveaxis(within, 1, 0)),
        )

    def ends(self) -> tuple[int, ...]:
        """Which test within the tasks is the last of each."""
        return tuple(self.made(task + 1) // self.every - 1 for task in range(self.tasks)) if self.every else ()

    def moment(self, state: RunState, curves: Curves) -> Moment:
        """Where the run is, and how its latest stretch went."""
        loss, unconverged = (_mean(curve[: self.nets, -1]) for curve in (curves.loss, curves.unconverged))
        step = self.made(len(state.curves)) + len(state.begun) * self.chunk
        accuracy = state.tables[-1][: self.nets, 0]
        return Moment(len(state.curves), self.tasks, step, self.total, loss, unconverged, accuracy)


def taken_up(state: RunState, programs: Programs, nets: int) -> RunState:
    """The state with its progress made and placed like the first, and as many spare rows as this layout needs.

    Raises:
        ValueError: leaves of other numbers, shapes or dtypes.
    """
    wanted, structure = jax.tree.flatten(programs.first)
    leaves = jax.tree.leaves(state.progress)
    described = [[f"{leaf.dtype}{leaf.shape[1:]}" for leaf in some] for some in (wanted, leaves)]
    same_tests = (bool(state.probed), bool(state.diagnosed)) == (programs.probes, programs.diagnoses)
    if described[0] != described[1] or any(len(leaf) < nets for leaf in leaves) or not same_tests:
        raise ValueError(
            f"The state belongs to another run: this one carries {', '.join(described[0])} for each of {nets} nets, "
            f"the state {', '.join(described[1])} for {min(map(len, leaves), default=0)}"
            f"{'' if same_tests else ', and one of the two has a probe or a diagnosis, the other none'}.\n"
            "Take up a run with the experiment, key and seeds that it began with, or start anew."
        )
    rows = np.minimum(np.arange(len(wanted[0])), nets - 1)
    fitted = lambda leaf: leaf if len(leaf) == len(rows) else leaf[rows]
    placed = place([fitted(leaf) for leaf in leaves], programs.mesh, SEED)
    told = {name: jax.tree.map(fitted, getattr(state, name)) for name in TOLD}
    return state._replace(progress=jax.tree.unflatten(structure, placed), layout=programs.layout, **told)


def read(tree):
    """On the host, whichever process has it."""
    return jax.tree.map(np.asarray, fetch(tree))


def _mean(values) -> float:
    """Over the finite ones, so that a seed that diverged hides no other; NaN without any."""
    finite = np.isfinite(values)
    return float(np.mean(values, where=finite)) if finite.any() else float("nan")


_ranks = jax.jit(jax.vmap(effective_rank))


def _told(state: RunState, found: Evaluated) -> RunState:
    """The state with what was found between two tasks."""
    state = state._replace(tables=(*state.tables, found.table))
    if (probed := found.probed) is not None:
        figures = np.stack([probed.dormant, np.asarray(_ranks(probed.last)), probed.weight_norm], axis=1)
        state = state._replace(probed=(*state.probed, figures))
    if found.findings is not None:
        state = state._replace(diagnosed=(*state.diagnosed, np.stack(found.findings, axis=1)))
    return state


def _rebinned(curves: tuple[Curves, ...]) -> Curves:
    """The curves of a stage's chunks as one of the length of the first, whatever the number of rounds."""

    def one(*pieces: np.ndarray) -> np.ndarray:
        whole = np.concatenate(pieces, axis=1)
        return whole.reshape(len(whole), pieces[0].shape[1], -1).mean(-1)

    return jax.tree.map(one, *curves)


def updates_a_call(steps: int, of: int = 1) -> int:
    """The largest divisor of steps up to CHUNK that is a multiple of `of`; all steps where that would be short."""
    best = max((d for d in range(of, min(steps, CHUNK) + 1, of) if steps % d == 0), default=of)
    return best if 8 * best >= min(steps, CHUNK) else steps
