"""What a new user copies first has to work as it stands: the README's example, and the docs' example of a strategy."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit import data, learning, models, runs
from bptoolkit.learning.learner import rows_of
from bptoolkit.runs.record import write_json

ROOT = Path(__file__).parents[1]


def example(page: str, place: int = 0) -> str:
    """One of the ```python blocks of a page."""
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert place < len(found), f"{page} has {len(found)} ```python blocks."
    return found[place]


@pytest.mark.slow
def test_the_first_example_of_the_readme_runs_from_an_empty_folder(tmp_path):
    """It prints one line for each of its nets, which begins with the net's name."""
    text = example("README.md")
    (tmp_path / "example.py").write_text(text, "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}  # as a user has it
    line = [sys.executable, "example.py"]
    ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    names = re.findall(r'^(?:nets = {)?\s*"(\w+)":', text, re.MULTILINE)
    assert names
    assert re.findall(r"^[a-z]+", ran.stdout, re.MULTILINE) == names


def test_the_solver_in_the_readme_settles_and_has_a_gradient(capsys):
    """∂/∂w of Σ z* is not zero anywhere, for z* = tanh(w z* + 1) has no unit at rest."""
    names = {}
    exec(example("README.md", 1), names)
    assert capsys.readouterr().out.startswith("CONVERGED ")
    assert names["gradient"].shape == (8, 8)
    assert jnp.all(names["gradient"] != 0)


def test_the_strategy_in_the_docs_adds_what_it_says(key):
    """∂/∂θ of ½ s ‖θ‖² is s θ, on top of the learner's own gradient."""
    names = {}
    exec(example("docs/index.md"), names)
    plain = learning.backprop(models.mlp(4, 3))
    params = plain.model.init(key)
    made = data.gaussian_classes(jax.random.key(1), classes=3, rows=2, features=4)
    batch = rows_of(made.train.x, made.train.y, 3, 1.0)
    grads = [learner.gradient((), params, batch, key)[0] for learner in (plain, names["weight_decay"](0.5)(plain))]
    chex.assert_trees_all_close(grads[1], jax.tree.map(lambda g, p: g + jnp.asarray(0.5) * p, grads[0], params))


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Checks a copy of the pages, of which one may be changed, against the committed results."""

    def check(page=None, change=lambda text: text):
        folder = tmp_path_factory.mktemp("copy")
        for part in ("README.md", "docs", "scripts", "experiments/results"):
            source, copy = ROOT / part, folder / part
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
        if page is not None:
            before = (folder / page).read_text("utf-8")
            (folder / page).write_text(change(before), "utf-8")
            assert (folder / page).read_text("utf-8") != before
        command = [sys.executable, "scripts/readme.py", "--check"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    return check


def test_the_tables_of_readme_and_docs_are_those_of_the_committed_results(checked):
    ran = checked()
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("page", "change"),
    [
        ("README.md", lambda text: text.replace("| 7,510 |", "| 7,511 |", 1)),
        ("README.md", lambda text: text.replace("seeds of that net peak at", "seeds peak at", 1)),
        (
            "docs/fixed_points.md",
            lambda text: re.sub(r"(results: stopping -->.*?\| )\d", r"\g<1>9", text, flags=re.DOTALL),
        ),
    ],
)
def test_a_page_with_a_figure_changed_is_stale(checked, page, change):
    ran = checked(page, change)
    assert ran.returncode == 1, ran.stderr
    assert f"{page} does not show experiments/results/" in ran.stderr


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda text: text.replace("results: split_digits", "results: split_digit"),
            "one of split_digits, .*got 'split_digit'",
        ),
        (lambda text: text.replace("<!-- end of results -->", "", 1), "must have its '<!-- end of results -->'"),
    ],
)
def test_a_place_that_cannot_be_filled_is_one_sentence(checked, change, sentence):
    ran = checked("README.md", change)
    assert ran.returncode == 2
    assert re.search(sentence, ran.stderr)
    assert len(ran.stderr.splitlines()) == 1


@pytest.fixture
def script(monkeypatch, tmp_path):
    """scripts/readme.py on a repository of its own, of one page that shows the results of split_digits."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("readme")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("<!-- results: split_digits -->\n<!-- end of results -->\n", "utf-8")
    return module


def run_of(path, name="split_digits", state="finished"):
    """The folder of a run with a summary in which nothing was run, and its record."""
    folder = runs.open_run(path, {"experiment": f"experiments.{name}", "config": {}}).folder
    rows = {"rows": [], "not_run": [["static", "naive", "class"]]}
    write_json(folder / "summary.json", {"level": 0.95, "seeds": 2, "tasks": 5, "question": None} | rows)
    runs.finish(folder, state)
    return folder


def test_a_finished_run_is_adopted_into_results_and_page(script, tmp_path):
    assert script.main(adopt=run_of(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "results" / "split_digits.json").read_text())["seeds"] == 2
    assert "Not run: static/naive/class." in (tmp_path / "README.md").read_text("utf-8")


def test_a_run_that_has_not_finished_is_not_adopted(script, tmp_path, capsys):
    assert script.main(adopt=run_of(tmp_path / "run", state="failed")) == 2
    assert "must hold a finished run, got one that is failed" in capsys.readouterr().err
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize(("name", "held"), [("mine", {"cells": []}), ("static_vs_recurrent", None)])
def test_results_of_another_kind_are_not_lost_to_a_run(script, tmp_path, capsys, name, held):
    """Those that are there, and those that a page shows by another table."""
    if held is not None:
        write_json(tmp_path / "results" / f"{name}.json", held)
    before = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    assert script.main(adopt=run_of(tmp_path / "run", name)) == 2
    assert f"{name}.json must hold the summary of one run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()} == before


def test_a_check_adopts_nothing(script, tmp_path, capsys):
    assert script.main(adopt=run_of(tmp_path / "run"), check=True) == 2
    assert "--check changes nothing and --adopt does" in capsys.readouterr().err
    assert not list((tmp_path / "results").iterdir())


def test_a_full_disk_leaves_the_committed_results_as_they_were(script, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_json(tmp_path / "results" / "split_digits.json", {"rows": []})
    folder = run_of(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", full)
    assert script.main(adopt=folder) == 2
    assert json.loads((tmp_path / "results" / "split_digits.json").read_text()) == {"rows": []}


def test_a_run_that_is_not_there_cannot_be_adopted():
    command = [sys.executable, "scripts/readme.py", "--adopt", "nowhere"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "nowhere/config.json must be a JSON file" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
