"""What a new user copies first has to work as it stands: the README's example, and the docs' example of a strategy."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit import data, learning, models
from bptoolkit.learning.learner import rows_of

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
    ran = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
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


@pytest.mark.parametrize("stale", [False, True])
def test_the_tables_of_the_readme_are_those_of_the_committed_results(stale, tmp_path):
    """The check passes on the page as it is, and fails on one with a figure changed."""
    for part in ("README.md", "scripts/readme.py", "experiments/results"):
        source, copy = ROOT / part, tmp_path / part
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    if stale:
        page = (tmp_path / "README.md").read_text("utf-8")
        (tmp_path / "README.md").write_text(page.replace("| 7,510 |", "| 7,511 |", 1), "utf-8")
    command = [sys.executable, "scripts/readme.py", "--check"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == int(stale), ran.stderr
