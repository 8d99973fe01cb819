"""Run an experiment: one net per seed through the tasks, in programs compiled once.  Knows no files.

A grid of numbers is one run of more nets.  The loop over tasks is in Python, where it tells its progress and can be
taken up again; all else is compiled.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bptoolkit.continual.activity import Plasticity, effective_rank
from bptoolkit.continual.cost import flops_of_prediction, time_of_predictions
from bptoolkit.continual.experiment import Cost, Experiment, Result
from bptoolkit.continual.lanes import Grid, Lanes, filled, make_lanes
from bptoolkit.continual.layout import SEED, Layout, choose_layout, fetch, place
from bptoolkit.continual.programs import Probed, Programs, weights_of
from bptoolkit.learning.fit import Curves, Progress
from bptoolkit.learning.learner import Curriculum
from bptoolkit.types import Key, Params

__all__ = ["Moment", "RunState", "run", "run_grid"]

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
    probed: tuple[
        np.ndarray, ...
    ] = ()  # (seeds, 3): the fields of Plasticity, untrained, then after each finished task


class Moment(NamedTuple):
    """Where a run is, as its hooks see it; rows that only fill devices are left out."""

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
    layout: Layout = Layout(),
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
        layout: how nets lie on devices; if left out, that of `state` where there are as many devices; what is None in
            it, by `choose_layout`.  Only in one and the same layout does a run taken up again end bit-identical.

    Where devices belong to several processes, `on_task` is handed the whole state in each of them, and `on_progress`
    a state whose progress is spread over them: `layout.fetch` gathers it, and all processes must call that.

    Raises:
        ValueError: no seeds, or the same twice; a model that does not fit the stream; the state of another run; a
            layout that does not fit the devices.
    """
    (result,) = run_grid(
        experiment, {}, key, seeds, on_task=on_task, on_progress=on_progress, state=state, layout=layout
    ).values()
    return result


def run_grid(
    experiment: Experiment,
    grid: Grid,
    key: Key,
    seeds: int | Sequence[int] = 5,
    *,
    on_task: Callable[[Moment, RunState], None] | None = None,
    on_progress: Callable[[Moment, RunState], None] | None = None,
    state: RunState | None = None,
    layout: Layout = Layout(),
) -> dict[tuple[Any, ...], Result]:
    """Run an experiment at every point of a grid of its numbers, all at once, in programs compiled once.

    `run_grid(experiment, {"rate": [0.1, 0.2], "strength": [1.0, 10.0]}, key)[0.1, 10.0]` is what `run` gives for
    `hyper = {"rate": 0.1, "strength": 10.0}`: the same seeds, the same streams, to rounding the same numbers.

    Args:
        grid: names in `experiment.hyper`, and the values of each; every combination is run.
        on_task: as for `run`; its moment and its state have one row for each net: point by point, seeds inside.
        key, seeds, on_progress, state, layout: as for `run`.

    Returns:
        The results by point, the values in the order of the grid's names.  Each is told its equal share of the
        seconds.

    Raises:
        ValueError: as `run`; a name that is not in `experiment.hyper`, or one without values.
    """
    lanes = make_lanes(experiment, grid, key, seeds)
    learner, *_ = (experiment.build(hyper)[0] for hyper in lanes.hypers)  # every value is checked before compiling
    weights = weights_of(learner, key)
    if layout == Layout() and state is not None and _fits(state.layout):
        layout = state.layout
    side_by_side = lanes.used if jax.process_count() == 1 else max(lanes.used, jax.device_count())
    layout = choose_layout(side_by_side, jax.device_count(), weights, learner.model.cell is not None, layout)
    lanes = filled(lanes, layout.devices or 1)

    chunk = _chunk(experiment.steps, experiment.evaluate_every or 1)
    programs = Programs(experiment, chunk, layout, lanes)
    walk = _Walk(experiment, programs, learner.curriculum, chunk, lanes.used, on_progress)
    state = walk.start() if state is None else _taken_up(state, programs, lanes.used)
    for _ in range(len(state.curves), experiment.stream.tasks):
        state = walk.stage(state)
        if on_task is not None:
            on_task(walk.moment(state, state.curves[-1]), state._replace(progress=fetch(state.progress)))

    params = _read(state.progress.params)
    cost = Cost(
        parameters=weights,
        flops=float("nan"),
        ms_per_1000=float("nan"),
        seconds=state.seconds / len(lanes.points),
        compile_seconds=programs.compile_seconds / len(lanes.points),
        steps=walk.total,
        peak_bytes=programs.peak_bytes,
        carried_bytes=_bytes_of(jax.tree.map(lambda leaf: leaf[0], programs.first.memory)),
        layout=str(layout),
    )
    costs = _priced(cost, experiment, lanes, params, state.curves)
    return {
        point: _result(state, lanes.seeds, lanes.of_point(number), params, costs[number], walk.ends())
        for number, point in enumerate(lanes.points)
    }


def _fits(layout: Layout) -> bool:
    """Whether there are the devices for it, in every process."""
    wanted = (layout.devices or 1) * layout.data
    return wanted <= jax.device_count() if jax.process_count() == 1 else wanted == jax.device_count()


def _priced(cost: Cost, experiment: Experiment, lanes: Lanes, params: Params, curves: Sequence[Curves]) -> list[Cost]:
    """The cost at each point, with what a prediction takes in the first seed's net there."""
    places = [lanes.of_point(number) for number in range(len(lanes.points))]
    nets = [jax.tree.map(lambda leaf, at=at: leaf[at.start], (lanes.hyper, params)) for at in places]
    settling = np.stack([curve.settling_steps for curve in curves])  # (tasks, lanes, bins)
    steps = np.array([settling[:, at].mean() for at in places])
    example = experiment.stream.data.test.x[:1000].astype(jnp.result_type(float)) / experiment.stream.data.scale
    model = experiment.build(nets[0][0])[0].model
    flops = flops_of_prediction(model, nets[0][1], example[0], steps)
    ms = time_of_predictions(experiment, nets, example)
    return [replace(cost, flops=float(f), ms_per_1000=t) for f, t in zip(flops, ms, strict=True)]


class _Walk:
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
        table, probed = _read(p.evaluate(p.lanes, p.first, p.data))
        seconds = time.perf_counter() - began
        return RunState(p.first, (table,), (), (), (), seconds, p.layout, probed=_figures(probed))

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
        finite = _read(finite)  # before anything else is started: exchanges of two programs must not overlap
        table, probed = _read(p.evaluate(p.lanes, progress, p.data))
        return state._replace(
            progress=progress,
            tables=(*state.tables, table),
            probed=(*state.probed, *_figures(probed)),
            curves=(*state.curves, _rebinned(state.begun)),
            finite=(*state.finite, finite),
            begun=(),
            seconds=state.seconds + time.perf_counter() - began,
            within=(*state.within[:-1], table[:, 0]) if self.every else (),
        )

    def stretch(self, state: RunState, task: int, first: int) -> RunState:
        """As many updates as one call makes."""
        p, began = self.programs, time.perf_counter()
        progress, curve, within = p.train(p.lanes, state.progress, p.data, np.int32(task), np.int32(first))
        curve, within = _read((curve, within))
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
        loss, unconverged = (_mean(curve[: self.nets, -1]) for curve in (curves.loss, curves.unconverged))
        step = self.made(len(state.curves)) + len(state.begun) * self.chunk
        accuracy = state.tables[-1][: self.nets, 0]
        return Moment(len(state.curves), self.tasks, step, self.total, loss, unconverged, accuracy)


def _bytes_of(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _read(tree):
    """On the host, whichever process has it."""
    return jax.tree.map(np.asarray, fetch(tree))


def _mean(values) -> float:
    """Over the finite ones, so that a seed that diverged hides no other; NaN without any."""
    finite = np.isfinite(values)
    return float(np.mean(values, where=finite)) if finite.any() else float("nan")


def _taken_up(state: RunState, programs: Programs, nets: int) -> RunState:
    """The state with its progress made and placed like the first, and as many spare rows as this layout needs.

    Raises:
        ValueError: leaves of other numbers, shapes or dtypes.
    """
    wanted, structure = jax.tree.flatten(programs.first)
    leaves = jax.tree.leaves(state.progress)
    described = [[f"{leaf.dtype}{leaf.shape[1:]}" for leaf in some] for some in (wanted, leaves)]
    if described[0] != described[1] or any(len(leaf) < nets for leaf in leaves):
        raise ValueError(
            f"The state belongs to another run: this one carries {', '.join(described[0])} for each of {nets} nets, "
            f"the state {', '.join(described[1])} for {min(map(len, leaves), default=0)}.\n"
            "Take up a run with the experiment, key and seeds that it began with, or start anew."
        )
    rows = np.minimum(np.arange(len(wanted[0])), nets - 1)
    fitted = lambda leaf: leaf if len(leaf) == len(rows) else leaf[rows]
    placed = place([fitted(leaf) for leaf in leaves], programs.mesh, SEED)
    return state._replace(
        progress=jax.tree.unflatten(structure, placed),
        tables=jax.tree.map(fitted, state.tables),
        curves=jax.tree.map(fitted, state.curves),
        finite=jax.tree.map(fitted, state.finite),
        begun=jax.tree.map(fitted, state.begun),
        within=jax.tree.map(fitted, state.within),
        probed=jax.tree.map(fitted, state.probed),
        layout=programs.layout,
    )


def _result(state: RunState, seeds: tuple[int, ...], own: slice, params: Params, cost: Cost, ends) -> Result:
    tables = np.stack(state.tables, axis=2)[own]  # (seeds, 2, untrained and after, on)
    return Result(
        accuracy=tables[:, 0, 1:],
        train_accuracy=tables[:, 1, 1:],
        untrained=tables[:, 0, 0],
        untrained_train=tables[:, 1, 0],
        curves=jax.tree.map(lambda *stages: np.stack(stages, axis=1)[own], *state.curves),
        finite=np.stack(state.finite, axis=1)[own],
        seeds=seeds,
        params=jax.tree.map(lambda leaf: leaf[own], params),
        cost=cost,
        within=np.stack(state.within, axis=1)[own] if state.within else None,
        ends=ends,
        plasticity=Plasticity(*np.stack(state.probed, axis=-1)[own].swapaxes(0, 1)) if state.probed else None,
    )


def _figures(probed: Probed | None) -> tuple[np.ndarray, ...]:
    """The fields of Plasticity side by side, (nets, 3), if anything was probed."""
    if probed is None:
        return ()
    rank = jax.jit(jax.vmap(effective_rank))(probed.last)
    return (np.stack([probed.dormant, np.asarray(rank), probed.weight_norm], axis=1),)


def _rebinned(curves: tuple[Curves, ...]) -> Curves:
    """The curves of a stage's chunks as one of the length of the first, whatever the number of rounds."""

    def one(*pieces: np.ndarray) -> np.ndarray:
        whole = np.concatenate(pieces, axis=1)
        return whole.reshape(len(whole), pieces[0].shape[1], -1).mean(-1)

    return jax.tree.map(one, *curves)


def _chunk(steps: int, of: int = 1) -> int:
    """The largest divisor of steps up to CHUNK that is a multiple of `of`; all steps where that would be short."""
    best = max((d for d in range(of, min(steps, CHUNK) + 1, of) if steps % d == 0), default=of)
    return best if 8 * best >= min(steps, CHUNK) else steps
