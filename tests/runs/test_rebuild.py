"""A run's experiments are made again from its config.json."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Literal

import pytest

from bptoolkit.runs import RunError, load_config, load_experiments, open_run


@dataclasses.dataclass(frozen=True)
class Inner:
    """A part of a configuration."""

    rates: tuple[float, ...] = (0.1,)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every kind of field that a configuration may have."""

    hidden: tuple[int, ...] = (100, 50)
    pair: tuple[str, float] = ("a", 0.5)
    scenario: Literal["class", "task"] = "class"
    limit: int | None = None
    maybe: Inner | None = None
    inner: Inner = Inner()
    nested: tuple[Inner, ...] = (Inner((0.2, 0.3)), Inner())
    where: Path = Path("data")
    on: bool = False


@pytest.fixture
def module(monkeypatch):
    """An importable module whose `define` hands back its configuration."""
    made = types.ModuleType("defines_something")
    made.Config, made.define = Config, lambda config: {"config": config}
    monkeypatch.setitem(sys.modules, "defines_something", made)
    return made


def kept(folder, config):
    data = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return open_run(folder, {"experiment": "defines_something", "config": data, "seeds": 2, "key": 0}).folder


@pytest.mark.parametrize(
    "config",
    [Config(), Config(limit=3, maybe=Inner(()), hidden=(), on=True), Config(where=Path("/a"), scenario="task")],
    ids=["defaults", "filled", "others"],
)
def test_the_configuration_comes_back_equal(module, tmp_path, config):
    folder = kept(tmp_path / "run", config)
    assert load_experiments(folder) == {"config": config}
    assert load_config(folder)["seeds"] == 2


CHANGES = {
    "a field more": lambda config: config | {"more": 1},
    "a field less": lambda config: {name: config[name] for name in config if name != "hidden"},
    "no fields": lambda config: [1],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_configuration_that_has_changed_is_one_sentence(module, tmp_path, change):
    folder = kept(tmp_path / "run", Config())
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {"config": change(record["config"])}))
    with pytest.raises(RunError, match=r"must give config the fields .* got .* Go back to the commit"):
        load_experiments(folder)


@pytest.mark.parametrize("name", ["no_such_module", "json", "", "..x", 3])
def test_an_experiment_that_is_not_there_is_one_sentence(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"experiment": name, "config": {}}))
    with pytest.raises(RunError, match=r"which is no module with a Config and a define .* Start in the repository"):
        load_experiments(tmp_path)


def test_the_experiments_of_this_repository_come_back(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from experiments.split_digits import Config, define

    config = Config(strategies=("naive",), steps=3)
    record = {"experiment": "experiments.split_digits", "config": dataclasses.asdict(config), "seeds": 1, "key": 0}
    experiments = load_experiments(open_run(tmp_path / "run", record).folder)
    assert list(experiments) == list(define(config))
    assert {experiment.steps for experiment in experiments.values()} == {3}
