"""Memory that is not there: refused beforehand where that can be known, told in a sentence where not.

Nothing large is ever allocated: every size is beyond what any system hands out.
"""

import json

import jax
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning, models
from bptoolkit.runs import RunError, carry_out
from bptoolkit.runs.memory import enough_memory, least

CONFIG = {"experiment": "tests.huge", "config": {}, "seeds": 2, "key": 0}
NAME = "static/naive/class"
HUGE = 10**7  # units of two layers: 10¹⁴ weights between them


@pytest.fixture(scope="module")
def stream():
    return cl.split(data.gaussian_classes(jax.random.key(1), 4, 12, 3, test_rows=8), 2)


def of(stream, *hidden, **changes):
    changes.setdefault("learner", learning.backprop(models.mlp(3, *hidden, 4)))
    return cl.Experiment(stream, **({"optimizer": optax.sgd(0.1, 0.9), "steps": 2, "batch": 4} | changes))


def test_the_least_is_weights_momentum_and_the_rows_of_a_batch(stream):
    """3-5-4: 15 + 5 + 20 + 4 = 44 weights, and as many momenta; 10 rows of 3 inputs and 4 outputs; 8 bytes each."""
    assert least(of(stream, 5, batch=10), nets=6) == 8 * (6 * 2 * 44 + 10 * 7)


@pytest.mark.parametrize("changes", [{"hidden": (HUGE, HUGE)}, {"batch": 10**15}], ids=["net", "batch"])
def test_a_run_that_cannot_fit_is_refused_before_anything_is_written(stream, tmp_path, changes):
    experiment = of(stream, *changes.pop("hidden", (5,)), **changes)
    with pytest.raises(ValueError, match=f"{NAME} needs at least [0-9,]* GiB of memory for 2 seeds, got [0-9]+"):
        carry_out(tmp_path / "run", CONFIG, {NAME: experiment})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [HUGE, 5], ids=["weights", "a strategy's own memory"])
def test_a_run_that_finds_no_memory_ends_in_a_sentence_and_is_on_record(stream, tmp_path, monkeypatch, size):
    """XLA's own refusal, where nobody has known beforehand."""
    monkeypatch.setattr("bptoolkit.runs.session.check_memory", lambda *_: None)
    much = lambda params, described, key: jax.numpy.zeros((HUGE, HUGE))
    greedy = learning.backprop(models.mlp(3, 5, 4))._replace(init=much)
    experiment = of(stream, learner=greedy) if size == 5 else of(stream, size, size)
    folder = tmp_path / "run"
    with pytest.raises(RunError, match=r"more memory than there is \(.*[Oo]ut of memory.*\)\. Take fewer seeds"):
        carry_out(folder, CONFIG, {NAME: experiment})
    end = json.loads((folder / "environment.json").read_text())
    assert end["state"] == "failed"
    assert "more memory than there is" in end["error"]
    assert not (folder / "results.nc").exists()


def test_numpy_without_memory_is_told_alike():
    with pytest.raises(RunError, match=r"more memory than there is \(Unable to allocate"), enough_memory():
        np.zeros(HUGE**2 * 100)


def test_another_error_of_the_runtime_is_passed_on():
    error = jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"), enough_memory():
        raise error
