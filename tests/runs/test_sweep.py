"""A sweep: what is traced, what is run in turn, what is kept of a cell that fails; each point is the run alone."""

import json
import os
import signal
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
import optax
import pytest
import xarray

from bptoolkit import continual as cl
from bptoolkit import data, learning, models, runs
from bptoolkit.continual.programs import numbers_read
from bptoolkit.runs.fields import Amount
from bptoolkit.runs.interrupt import interruptible
from bptoolkit.runs.lock import locked
from bptoolkit.runs.record import write_json
from bptoolkit.runs.sweep import best, load_sweep, plan, points, sweep, undecided

OVER = {"rate": [0.1, 0.4], "units": [3, 5], "decay": [0.0, 0.3]}
RECORD = {"experiment": "tiny", "seeds": 2, "key": 0}


@dataclass(frozen=True)
class Config:
    rate: Amount = 0.1
    decay: float = 0.0
    units: int = 3
    per_task: int | None = None  # classes
    scenario: str = "class"


def decayed(learner, decay):
    """½ decay ‖θ‖² is added to the loss."""

    def gradient(memory, params, batch, key):
        grads, info, memory = learner.gradient(memory, params, batch, key)
        return jax.tree.map(lambda g, p: g + decay * p, grads, params), info, memory

    return learner._replace(gradient=gradient)


def define(config):
    """Only "decayed" reads the decay, and only within its gradient; no units are refused."""
    clouds = data.gaussian_classes(jax.random.key(1), 4, (5, 7, 2, 6), 4, test_rows=8)
    learner = learning.backprop(models.mlp(4, config.units, 4))
    make = lambda learn: cl.Experiment(
        cl.split(clouds, config.per_task or 2),
        learn,
        lambda hyper: optax.sgd(hyper["rate"]),
        steps=2,
        batch=4,
        hyper={"rate": config.rate, "decay": config.decay},
    )
    return {
        "static/plain/class": make(lambda hyper: learner),
        "static/decayed/class": make(lambda hyper: decayed(learner, hyper["decay"])),
    }


def carry(asked, folder, config, cell):
    return runs.carry_out(folder, config, define(cell.config), grid=asked.grid, layout=cl.Layout(1, False)).results


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """The whole sweep, and its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    asked = plan(define, Config(), OVER)
    return folder, asked, sweep(folder, asked, partial(carry, asked), RECORD)


def test_numbers_are_side_by_side_and_all_else_in_turn():
    asked = plan(define, Config(), OVER)
    assert asked.grid == {"rate": [0.1, 0.4], "decay": [0.0, 0.3]}
    assert [cell.config for cell in asked.cells] == [Config(units=3), Config(units=5)]


def test_a_number_that_an_experiment_changes_is_not_taken_for_traced():
    """Negative control: hyper holds another value than the field, so the field must be defined anew."""
    halved = lambda config: define(replace(config, rate=config.rate / 2))
    assert plan(halved, Config(), {"rate": [0.1, 0.4]}).traced == ()


def test_a_field_left_out_is_not_taken_for_traced():
    """None, which no experiment holds as a number, is a value of its own."""
    asked = plan(define, Config(), {"per_task": [None, 2]})
    assert asked.grid == {}
    assert [cell.config.per_task for cell in asked.cells] == [None, 2]


def test_cells_of_different_numbers_of_tasks_are_not_averaged_together(tmp_path):
    """Which is said before anything is trained."""
    with pytest.raises(ValueError, match="the same number of tasks, got 2 and 4"):
        plan(define, Config(), {"per_task": [1, 2]})
    one, two = (define(Config(per_task=classes))["static/plain/class"] for classes in (1, 2))
    with pytest.raises(ValueError, match="All experiments of a run need the same number of tasks"):
        runs.carry_out(tmp_path / "run", RECORD | {"config": {}}, {"a/b/class": one, "b/b/class": two})


def test_numbers_that_make_no_difference_are_told_from_the_others():
    plain, other = define(Config()).values()
    assert numbers_read(plain) == {"rate"}
    assert numbers_read(other) == {"rate", "decay"}


@pytest.mark.parametrize(("name", "rate", "units", "decay"), [("plain", 0.4, 3, 0.3), ("decayed", 0.1, 5, 0.3)])
def test_a_point_is_the_run_alone(carried, name, rate, units, decay):
    """In turn on one device: bit for bit, also where a number that is not read was not run again."""
    experiment = define(Config(rate, decay, units))[f"static/{name}/class"]
    alone = cl.run(experiment, jax.random.key(0), 2, layout=cl.Layout(1, False))
    found = carried[2].results.sel(rate=rate, units=units, decay=decay, strategy=name, net="static", scenario="class")
    np.testing.assert_array_equal(found["accuracy"].isel(after=slice(1, None)).values, alone.accuracy)
    np.testing.assert_array_equal(found["loss"].values, alone.curves.loss)


def test_points_differ_where_a_number_is_read(carried):
    """Negative control of the law above."""
    loss = carried[2].results["loss"].sel(net="static", scenario="class", units=5)
    apart = lambda strategy, axis: float(np.abs(loss.sel(strategy=strategy).diff(axis)).max())
    assert apart("decayed", "decay") > 1e-3
    assert apart("plain", "decay") == 0
    assert apart("plain", "rate") > 1e-3


def test_the_array_has_all_axes_in_order_and_comes_back(carried):
    folder, _, swept = carried
    assert swept.failed == {}
    loaded = load_sweep(folder)
    assert loaded["accuracy"].dims == ("rate", "units", "decay", "net", "strategy", "scenario", "seed", "after", "on")
    assert loaded["accuracy"].notnull().all()
    assert {axis: loaded[axis].values.tolist() for axis in OVER} == OVER
    xarray.testing.assert_equal(loaded, swept.results)


def made(folder, config, cell):
    """Without training: accuracy is rate + units/100, the same for all seeds; four units cannot be."""
    made.calls.append(cell.config.units)
    if cell.config.units == 4:
        raise ValueError("four units\nand more lines")
    axes = {"rate": config["over"]["rate"], "net": ["static"], "strategy": ["plain"], "scenario": ["class"]}
    axes |= {"seed": [0, 1], "after": [0, 1], "on": [1]}
    rates = np.array(axes["rate"]).reshape(-1, *[1] * 6)
    values = np.broadcast_to(rates + cell.config.units / 100, [len(axis) for axis in axes.values()])
    return xarray.Dataset({"accuracy": (list(axes), values), "loss": (("bin",), np.zeros(cell.config.units))}, axes)


def test_a_cell_that_fails_is_recorded_and_the_others_are_there(tmp_path):
    made.calls = []
    asked = plan(define, Config(), {"units": [3, 4, 5], "rate": [0.4, 0.1]})
    swept = sweep(tmp_path, asked, made, RECORD)
    assert made.calls == [3, 4, 5]
    assert swept.failed == {"units = 4": "four units"}
    told = json.loads((tmp_path / "sweep.json").read_text())["cells"]
    assert [cell["state"] for cell in told] == ["finished", "failed", "finished"]
    assert told[1]["error"] == "four units"
    missing = load_sweep(tmp_path)["accuracy"].isnull().all(["rate", "seed", "after", "on"]).squeeze().values
    assert missing.tolist() == [False, True, False]


def test_a_second_process_on_a_sweep_is_refused_and_spoils_nothing(tmp_path):
    """The lock is one of its open file, so that a process meets its own."""
    made.calls = []
    asked = plan(define, Config(), {"units": [3, 5], "rate": [0.1]})
    sweep(tmp_path, asked, made, RECORD)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with locked(tmp_path), pytest.raises(runs.RunError, match=r"in use by process \d+ on .* wait for it"):
        sweep(tmp_path, asked, made, RECORD)
    assert made.calls == [3, 5]
    assert before.keys() == {".lock", "sweep.json", "sweep.nc"}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_cell_in_use_ends_the_sweep_and_is_no_failure_of_the_cell(tmp_path):
    asked = plan(define, Config(), {"units": [3], "rate": [0.1]})

    def held(place, config, cell):
        place.mkdir(parents=True)
        with locked(place):
            return carry(asked, place, config, cell)

    with pytest.raises(runs.RunError, match=r"cells/tiny-\w+ is in use by process"):
        sweep(tmp_path, asked, held, RECORD)
    assert not (tmp_path / "sweep.json").exists()


def test_an_error_that_is_fatal_ends_the_sweep(tmp_path):
    made.calls = []
    asked = plan(define, Config(), {"units": [3, 4, 5], "rate": [0.1]})
    with pytest.raises(ValueError, match="four units"):
        sweep(tmp_path, asked, made, RECORD, fatal=lambda error: True)
    assert made.calls == [3, 4]


def test_a_signal_in_the_last_moments_of_a_cell_ends_the_sweep(tmp_path):
    """When the cell's run has nothing left to stop; the cell is kept."""
    made.calls = []

    def signalled(*arguments):
        with interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            return made(*arguments)

    asked = plan(define, Config(), {"units": [3, 5], "rate": [0.1]})
    with pytest.raises(runs.Interrupted, match="Cells that have finished are kept"):
        sweep(tmp_path, asked, signalled, RECORD)
    assert made.calls == [3]
    (cell,) = json.loads((tmp_path / "sweep.json").read_text())["cells"]
    assert cell["state"] == "finished"


def test_a_sweep_that_starts_again_leaves_no_array_of_the_old_cells(tmp_path):
    """Broken off, it has neither array nor choice, which would stand for cells that are no more."""
    made.calls = []
    asked = plan(define, Config(), {"units": [3, 5], "rate": [0.1]})
    sweep(tmp_path, asked, made, RECORD)
    write_json(tmp_path / "chosen.json", {})

    def broken(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, asked, broken, RECORD)
    assert {path.name for path in tmp_path.iterdir()} & {"sweep.nc", "chosen.json"} == set()


def test_the_best_point_is_the_greatest_mean(tmp_path):
    """0.4 + 0.05 by construction, at the first rate and the last units."""
    made.calls = []
    asked = plan(define, Config(), {"units": [3, 4, 5], "rate": [0.4, 0.1]})
    (point,) = best(sweep(tmp_path, asked, made, RECORD).results)
    assert (point.net, point.strategy, point.scenario) == ("static", "plain", "class")
    assert point.values == {"units": 5, "rate": 0.4}
    assert point.mean == pytest.approx(0.45)
    assert point.half_width == pytest.approx(0)


def test_a_point_at_which_a_seed_diverged_is_not_the_best(tmp_path):
    """Its accuracy stands there, and its weights were not finite: the second best is chosen."""
    made.calls = []
    asked = plan(define, Config(), {"units": [3, 4, 5], "rate": [0.4, 0.1]})
    results = sweep(tmp_path, asked, made, RECORD).results
    wild = (results["units"] == 5) & (results["seed"] == results["seed"][-1])
    finite = xarray.ones_like(results["accuracy"].isel(after=0, on=0, drop=True)).expand_dims(task=[1, 2])
    (point,) = best(results.assign(finite=finite.where(~wild, 0)))
    assert point.values == {"units": 3, "rate": 0.4}
    assert undecided(results) == []
    nowhere = results.assign(finite=0 * finite)
    assert not list(best(nowhere))
    assert undecided(nowhere) == ["static/plain/class"]


def test_every_point_has_its_mean_and_one_of_a_failed_cell_has_none(tmp_path):
    made.calls = []
    asked = plan(define, Config(), {"units": [3, 4, 5], "rate": [0.4, 0.1]})
    found = list(points(sweep(tmp_path, asked, made, RECORD).results))
    assert [tuple(point.values.values()) for point in found] == [(u, r) for u in (3, 4, 5) for r in (0.4, 0.1)]
    np.testing.assert_allclose([point.mean for point in found], [0.43, 0.13, np.nan, np.nan, 0.45, 0.15], rtol=1e-6)


def test_a_field_of_words_has_a_best_point_too(tmp_path):
    """Layers of a net are a label, which NetCDF gives back as an object."""
    made.calls = []
    asked = plan(define, Config(), {"units": [3, 5], "rate": [0.4]})
    results = sweep(tmp_path, asked, made, RECORD).results
    (point,) = best(results.assign_coords(units=np.array(["10", "20, 20"], object)))
    assert point.values == {"units": "20, 20", "rate": 0.4}


def test_finished_cells_are_not_run_again(carried, monkeypatch):
    folder, asked, swept = carried
    monkeypatch.setattr("bptoolkit.runs.session.run_grid", None)
    again = sweep(folder, asked, partial(carry, asked), RECORD)
    xarray.testing.assert_equal(again.results, swept.results)


def test_a_sweep_in_which_all_fails_says_why(tmp_path):
    asked = plan(define, Config(), {"units": [0]})
    with pytest.raises(runs.RunError, match=r"Every cell of the sweep failed, the first with: .* sizes of one or more"):
        sweep(tmp_path, asked, partial(carry, asked), RECORD)
    with pytest.raises(runs.RunError, match="holds no sweep"):
        load_sweep(tmp_path)


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({}, "at least one field to go over: rate, decay, units, per_task, scenario"),
        ({"unit": [1]}, "no field 'unit'. Its fields: rate, decay, units, per_task, scenario"),
        ({"scenario": ["task"]}, "scenario is an axis of every result"),
        ({"rate": []}, "different values of rate, at least one"),
        ({"rate": [0.1, 0.1]}, "different values of rate, at least one"),
        ({"rate": [-1.0, 0.1]}, "rate must be a finite number of at least 0, got -1.0"),
    ],
)
def test_a_sweep_over_nothing_is_refused(over, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(define, Config(), over)
