"""What a sweep chose on validation rows goes into a run, is recorded with how it was chosen, and is found again."""

import json
from dataclasses import dataclass

import numpy as np
import optax
import pytest
import xarray

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.models import mlp
from bptoolkit.runs import RunError, choice_of, load_choice, load_experiments, open_run, with_choice
from bptoolkit.runs.fields import Amount

NAMES = ("static/ewc/class", "static/naive/class")
CHOICE = {"how": "on validation rows", "values": {"static/ewc/class": {"strength": 10.0, "units": 5}}}
CONFIG = {"strength": 1.0, "units": 5}


@pytest.fixture(scope="module")
def experiments(digits):
    hyper = {"strength": 1.0, "rate": 0.1}
    made = cl.Experiment(cl.split(digits, 5), learning.backprop(mlp(64, 5, 10)), optax.sgd(0.1), 2, hyper=hyper)
    return dict.fromkeys(NAMES, made)


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def test_the_best_point_of_each_combination_is_what_was_chosen():
    accuracy = np.zeros((2, 1, 2, 1, 3, 2, 1))  # strength, net, strategy, scenario, seed, after, on
    accuracy[1, 0, 0], accuracy[0, 0, 1] = 0.5, 0.4
    dims = ("strength", "net", "strategy", "scenario", "seed", "after", "on")
    coords = {"strength": [1.0, 10.0], "net": ["static"], "strategy": ["ewc", "naive"], "scenario": ["class"]}
    results = xarray.Dataset({"accuracy": (dims, accuracy)}, coords, {"over": ["strength"]})
    assert choice_of(results, "so")["values"] == {NAMES[0]: {"strength": 10.0}, NAMES[1]: {"strength": 1.0}}


def test_each_combination_gets_its_own_numbers_and_the_others_keep_theirs(experiments):
    found = with_choice(experiments, CONFIG, CHOICE)
    assert found[NAMES[0]].hyper == {"strength": 10.0, "rate": 0.1}
    assert found[NAMES[1]].hyper == {"strength": 1.0, "rate": 0.1}


def test_layers_that_were_chosen_are_those_of_the_run(experiments):
    """A label in the sweep, a tuple in the configuration, a list in config.json; refused with the flag to give."""
    choice = {"how": "so", "values": {NAMES[0]: {"hidden": "(100, 50)", "bias": "True"}}}
    for hidden in ((100, 50), [100, 50]):
        found = with_choice(experiments, CONFIG | {"hidden": hidden, "bias": True}, choice)
        assert found[NAMES[0]].hyper == {"strength": 1.0, "rate": 0.1}
    with pytest.raises(RunError, match=r"the run has hidden = \(9,\) for all combinations. Give --hidden 100 50\."):
        with_choice(experiments, CONFIG | {"hidden": [9], "bias": True}, choice)


def test_a_choice_that_does_not_fit_the_run_is_refused(experiments):
    with pytest.raises(RunError, match=r"units = 5 was chosen for static/ewc/class.*units = 9.*Give --units 5"):
        with_choice(experiments, CONFIG | {"units": 9}, CHOICE)
    with pytest.raises(RunError, match="must be for combinations of this run, such as static/ewc/class"):
        with_choice(experiments, CONFIG, {"how": "so", "values": {"a/b/c": {}}})


@pytest.mark.parametrize(("value", "got"), [(-1.0, "at least 0, got -1.0"), ("much", "got 'much'"), (None, "got None")])
def test_a_choice_out_of_the_range_of_its_field_is_refused(experiments, value, got):
    """A choice may be written by hand: it is held to what the flag is held to."""

    @dataclass(frozen=True)
    class Asked:
        strength: Amount = 1.0
        units: int = 5

    values = {"strength": value, "units": 5}
    with pytest.raises(RunError, match=f"The choice for static/ewc/class must be in .*strength must be .*{got}"):
        with_choice(experiments, Asked(), {"how": "so", "values": {NAMES[0]: values}})
    assert with_choice(experiments, Asked(), CHOICE)[NAMES[0]].hyper["strength"] == 10.0


def test_a_choice_is_read_from_the_sweep_or_its_file(tmp_path):
    (tmp_path / "chosen.json").write_text(json.dumps(CHOICE | {"more": 1}))
    assert load_choice(tmp_path) == load_choice(tmp_path / "chosen.json") == CHOICE


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"how": 1, "values": {}}', '{"how": "so", "values": {"a": 1}}'])
def test_a_file_that_holds_no_choice_is_refused(tmp_path, text):
    (tmp_path / "chosen.json").write_text(text)
    with pytest.raises(RunError, match=r"chosen\.json must"):
        load_choice(tmp_path)


def test_a_sweep_without_a_choice_is_refused(tmp_path):
    with pytest.raises(RunError, match="--validate TASKS"):
        load_choice(tmp_path)


def test_a_run_is_rebuilt_with_what_was_chosen_for_it(tmp_path):
    from experiments.split_digits import Config

    asked = {"experiment": "experiments.split_digits", "config": vars(Config()), "seeds": 2, "key": 0}
    chosen = {"how": "so", "values": {"static/ewc/class": {"strength": 7.0}}}
    folder = open_run(tmp_path / "run", asked | {"chosen": chosen}).folder
    hyper = {name: one.hyper["strength"] for name, one in load_experiments(folder).items()}
    assert hyper.pop("static/ewc/class") == 7.0
    assert set(hyper.values()) == {Config().strength}
