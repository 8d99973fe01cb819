"""Run an experiment: one net per seed through the tasks, in programs compiled once.  Knows no files.

A grid of numbers is one run of more nets.  The loop over tasks is in `walk`; all else is compiled.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bptoolkit.continual.activity import Plasticity
from bptoolkit.continual.cost import flops_of_prediction, memory_bytes, time_of_predictions
from bptoolkit.continual.diagnose import Findings
from bptoolkit.continual.experiment import Cost, Experiment, Result
from bptoolkit.continual.lanes import Grid, Lanes, filled, make_lanes
from bptoolkit.continual.layout import Layout, choose_layout, fetch
from bptoolkit.continual.programs import Programs, check_rows, weights_of
from bptoolkit.continual.walk import Moment, RunState, Walk, read, taken_up, updates_a_call
from bptoolkit.learning.fit import Curves
from bptoolkit.types import Key, Params

__all__ = ["run", "run_grid"]


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

    chunk = updates_a_call(experiment.steps, experiment.evaluate_every or 1)
    programs = Programs(experiment, chunk, layout, lanes)
    walk = Walk(experiment, programs, learner.curriculum, chunk, lanes.used, on_progress)
    if state is None:
        state = walk.start()
        check_rows(programs.lanes.indices, lanes)  # read after a test has run: a start without memory would never end
    else:
        state = taken_up(state, programs, lanes.used)
    for _ in range(len(state.curves), experiment.stream.tasks):
        state = walk.stage(state)
        if on_task is not None:
            on_task(walk.moment(state, state.curves[-1]), state._replace(progress=fetch(state.progress)))

    params = read(state.progress.params)
    cost = Cost(
        parameters=weights,
        flops=float("nan"),
        ms_per_1000=float("nan"),
        seconds=state.seconds / len(lanes.points),
        compile_seconds=programs.compile_seconds / len(lanes.points),
        steps=walk.total,
        peak_bytes=programs.peak_bytes,
        memory_bytes=memory_bytes(learner, experiment.described()),
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
        diagnosis=Findings(*np.stack(state.diagnosed, axis=2)[own].swapaxes(0, 1)) if state.diagnosed else None,
    )
