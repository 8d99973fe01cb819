"""The sweep's command line: how --over is read, and what comes out (`tests/malformed` holds what is refused)."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pytest
import xarray

from bptoolkit.continual.choose import how_chosen
from bptoolkit.runs import load_choice, load_config, load_sweep
from bptoolkit.runs.sweep import Cell, Plan, Swept

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Config(NamedTuple):
    rate: float
    units: int
    hidden: tuple[int, ...]
    samples: int | None
    fisher: Literal["exact", "sampled"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("sweep")


def test_over_takes_what_follows_up_to_the_next_flag(script):
    line = ["split_digits", "--over", "rate", "1e-3", "1e-2", "--seeds", "5", "--over", "per-class", "20", "57"]
    rest, over = script.split(line)
    assert rest == ["split_digits", "--seeds", "5"]
    assert over == {"rate": ["1e-3", "1e-2"], "per_class": ["20", "57"]}


@pytest.mark.parametrize("line", ["--over", "--over rate 1 --over rate 2"])
def test_over_without_a_field_of_its_own_is_refused(script, line):
    with pytest.raises(ValueError, match="Every --over needs a field of its own"):
        script.split(line.split())


def test_values_are_of_the_type_of_their_field(script):
    words = {
        "rate": ["1", "1e-2"],
        "units": ["20"],
        "hidden": ["50", "50,20"],
        "samples": ["None", "3"],
        "fisher": ["exact"],
    }
    assert script.values(Config, words) == {
        "rate": [1.0, 0.01],
        "units": [20],
        "hidden": [(50,), (50, 20)],
        "samples": [None, 3],
        "fisher": ["exact"],
    }


@pytest.mark.parametrize(("name", "word"), [("units", "2.5"), ("rate", "fast"), ("fisher", "none"), ("hidden", "5,x")])
def test_a_value_of_another_type_is_refused(script, name, word):
    with pytest.raises(ValueError, match=f"--over {name} needs values of the type .*, got '{word}'"):
        script.values(Config, {name: [word]})


@pytest.mark.parametrize(
    ("failed", "said"),
    [({}, ""), ({"units = 4": "no"}, "; among 4 of 6 points, as these failed: units = 4")],
)
def test_a_choice_from_an_incomplete_grid_says_so(script, tmp_path, failed, said):
    """Three cells of two traced rates each; the choice stands as it is, and what it was made among is recorded."""
    dims = ("rate", "units", "net", "strategy", "scenario", "seed", "after", "on")
    axes = {"rate": [0.1, 0.2], "units": [3, 4, 5], "net": ["static"], "strategy": ["naive"], "scenario": ["class"]}
    accuracy = np.full((2, 3, 1, 1, 1, 2, 2, 1), 0.5)
    accuracy[1] = 0.75
    results = xarray.Dataset({"accuracy": (dims, accuracy)}, axes, {"over": ["rate", "units"]})
    over = {"rate": [0.1, 0.2], "units": [3, 4, 5]}
    asked = Plan(over, ("rate",), tuple(Cell({"units": units}, None) for units in over["units"]))
    script.kept(tmp_path, asked, Swept(results, failed), script.SweepOptions(validate=2))
    choice = load_choice(tmp_path)
    assert choice["values"] == {"static/naive/class": {"rate": 0.2, "units": 3}}
    assert choice["how"] == how_chosen(2, script.EVERY, 10) + said


@pytest.fixture
def command(compiled, tmp_path):
    """Runs scripts/sweep.py, or another, from an empty folder."""

    def call(*arguments, script="sweep.py"):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled), "COLUMNS": "200"}
        line = [sys.executable, str(SCRIPTS / script), *arguments]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return call


@pytest.mark.slow
def test_a_sweep_tells_its_best_points_and_its_failed_cells(command, tmp_path):
    """One compiled program for both rates; more classes than there are cannot be; the exit code says so."""
    over = ["--over", "rate", "1e-3", "1e-2", "--over", "classes-per-task", "2", "11"]
    ran = command(
        "split_digits", *over, *["--steps", "2", "--seeds", "1", "--nets", "static", "--strategies", "naive", "--quiet"]
    )
    assert ran.returncode == 1, ran.stderr
    assert "Failed: classes_per_task = 11: classes_per_task must be in 1 … 10" in ran.stdout
    assert "Chosen on the test rows" in ran.stdout
    assert "Accuracy" in ran.stdout
    assert "±" not in ran.stdout  # one seed has no interval
    (folder,) = (tmp_path / "runs").iterdir()
    accuracy = load_sweep(folder)["accuracy"]
    assert accuracy.dims[:2] == ("rate", "classes_per_task")
    assert accuracy.sel(classes_per_task=2).notnull().all()
    assert accuracy.sel(classes_per_task=11).isnull().all()


@pytest.mark.slow
def test_what_a_sweep_chose_on_validation_rows_goes_into_a_run(command, tmp_path):
    few = ["--steps", "2", "--seeds", "2", "--nets", "static", "--strategies", "ewc", "--quiet"]
    ran = command("split_digits", "--over", "strength", "1", "10", "--validate", "2", "--key", "1", *few)
    assert ran.returncode == 0, ran.stderr
    assert "one in 10 of the training rows of the first 2 tasks; no test row was looked at" in ran.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    swept = load_sweep(folder)
    assert swept.sizes["on"] == 2
    chosen = load_choice(folder)
    means = swept["accuracy"].isel(after=-1).mean(["on", "seed"]).squeeze()
    assert chosen["values"]["static/ewc/class"] == {"strength": float(means["strength"][int(np.argmax(means.values))])}

    again = command("split_digits", *few, "--chosen", str(folder), script="run.py")
    assert again.returncode == 0, again.stderr
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path != folder)
    assert load_config(run)["chosen"] == chosen
