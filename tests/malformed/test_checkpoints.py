"""Malformed checkpoints: each file of the newest one damaged in each way; the one before it is taken, and said so."""

import shutil

import jax
import numpy as np
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning, models
from bptoolkit.runs.checkpoint import load_state, save_state
from bptoolkit.runs.record import RunError
from tests.malformed.conftest import assert_clear
from tests.malformed.damage import DAMAGE, damage, flipped

ABOUT = {"combination": "static/naive/class", "configuration": {"key": 0}}
HOW = DAMAGE | {"a bit flipped": flipped(0), "another bit flipped": flipped(1)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of two checkpoints, after the first and the second task."""
    import optax

    stream = cl.split(data.gaussian_classes(jax.random.key(1), 4, 4, 3), 2)
    folder = tmp_path_factory.mktemp("checkpoints") / "class"
    experiment = cl.Experiment(stream, learning.backprop(models.mlp(3, 4)), optax.sgd(0.1), steps=2, batch=4)
    cl.run(experiment, jax.random.key(0), seeds=1, on_task=lambda moment, state: save_state(folder, state, ABOUT))
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "class")


def newest(folder):
    return max(folder.glob("[0-9]*"))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("which", ["about.json", "the largest array", "the first of Orbax's own"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(which, how, copied):
    files = sorted((path for path in newest(copied).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    own = [path for path in files if path.name.startswith("_")]
    damage({"about.json": newest(copied) / "about.json", "the largest array": files[-1]}.get(which, own[0]), HOW[how])
    state, said = load_state(copied, ABOUT)
    assert state is not None
    assert len(state.tables) == 2  # untrained, and after one task
    (sentence,) = said
    assert_clear(sentence)
    assert "the one before it is taken" in sentence


@pytest.mark.parametrize("how", HOW)
def test_where_all_are_damaged_it_starts_anew_and_says_so(how, copied):
    for checkpoint in copied.glob("[0-9]*"):
        damage(checkpoint / "about.json", HOW[how])
    state, said = load_state(copied, ABOUT)
    assert state is None
    assert len(said) == 2
    assert "starts anew" in said[-1]


@pytest.mark.parametrize(
    "about", [{}, {"combination": "other"}, ABOUT | {"configuration": {"key": 1}}, ABOUT | {"x": 0}]
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(about, copied):
    before = sorted(copied.rglob("*"))
    with pytest.raises(RunError, match="another run") as refused:
        load_state(copied, about)
    assert_clear(str(refused.value))
    assert sorted(copied.rglob("*")) == before


def test_an_undamaged_checkpoint_is_taken_without_a_word(copied):
    """The negative control."""
    state, said = load_state(copied, ABOUT)
    assert state is not None
    assert said == []
    assert len(state.tables) == 3
    assert np.isfinite(state.tables[-1]).all()
