"""Malformed command lines: flags of experiments and studies with values that they cannot have, in one process."""

import dataclasses
import importlib
import types
import typing

import pytest

from tests.malformed.conftest import load

MODULE = importlib.import_module("experiments.split_digits")
RUN, SWEEP, STUDY = load("run"), load("sweep"), load("study")
WORDS = ["", "x", "1e", "None5"]
BAD = {
    int: ["-1", "0", "2.5", "nan", "99999999999999999999", "x", ""],
    float: ["-1", "nan", "inf", "-inf", "1e999", "x", ""],
    typing.Literal: ["", "x", "0"],
}
STRUCTURE = {
    "no such experiment": ["split_digit"],
    "a path as experiment": ["../split_digits"],
    "a helper as experiment": ["grid"],
    "no such flag": ["split_digits", "--sedes", "3"],
    "a flag without its value": ["split_digits", "--steps"],
    "a value without its flag": ["split_digits", "3"],
    "a flag of two values": ["split_digits", "--steps", "3", "4"],
    "a run that is nowhere": ["--from", "nowhere"],
    "a run without its folder": ["--from"],
    "no nets": ["split_digits", "--nets"],
    "more units than memory": ["split_digits", "--units", "10000000"],
    "a batch beyond memory": ["split_digits", "--batch", "10000000000"],
    "more seeds than memory": ["split_digits", "--seeds", "100000", "--hidden", "100000"],
    "a choice that is nowhere": ["split_digits", "--chosen", "nowhere"],
    "a choice without its folder": ["split_digits", "--chosen"],
    "a net twice over": ["split_digits", "--nets", "static", "both"],
}
SAID = {  # by run.py
    "split_digit": "Nearest: split_digits",
    "split_digits --seeds 0": "seeds must be a whole number of at least 1",
    "split_digits --strength -1": "strength must be a finite number of at least 0",
    "split_digits --steps 0": "steps must be a whole number of at least 1",
    "split_digits --classes-per-task 11": "classes_per_task must be in 1 … 10",
    "split_digits --per-class 0": "per_class must be a whole number of at least 1",
    "split_digits --units 0": "units must be a whole number of at least 1",
    "split_digits --devices 0": "devices must be a whole number of at least 1",
    "split_digits --save-every 0": "save_every must be a whole number of at least 1",
    "split_digits --sedes 3": "--seeds",
    "--from nowhere": "nowhere/config.json must be a JSON file",
    "--from nowhere --devices 0": "devices must be a whole number of at least 1",
}
SAID_BY_SWEEP = {
    "split_digit --over rate 1": "Nearest: split_digits",
    "split_digits --over rat 1": "no field 'rat'",
    "split_digits --over units few": "--over units needs values of the type",
    "split_digits": "at least one field to go over",
    "split_digits --over rate 1 --validate 6": "tasks must be in 1 … 5, those of the stream",
    "split_digits --over rate 1 --validate 0": "validate must be",
}
SAID_BY_STUDY = {
    "partiy": "Nearest: parity",
    "parity --bits 2 4 --units 3": "units must be one number for each of the 2 bits, got 1",
    "parity --bits --units": "bits must have at least one value, got none",
    "parity --margin -5": "margin must be a finite number above 0, got -5",
    "parity --margin 1.1": "margin must be a finite number of at most 1, got 1.1",
    "parity --dt 0": "dt must be a finite number above 0, got 0",
    "learning_rate --rates": "rates must have at least one value, got none",
    "learning_rate --rates 0.1 0": "rates must be a finite number above 0, got 0",
    "completion --bits 5": "bits must be even, for a pattern to have two halves; got 5",
    "completion --bits 1": "bits must be even, for a pattern to have two halves; got 1",
    "completion --noises 0 1.5": "noises must be a finite number of at most 1, got 1.5",
    "completion --training-noise -0.1": "training_noise must be a finite number of at least 0, got -0.1",
    "completion --patterns": "patterns must have at least one value, got none",
    "hopfield_energy --gains": "gains must have at least one value, got none",
    "hopfield_energy --gains 0.5": "shown must be one of the gains 0.5; got 3",
    "hopfield_energy --steps 1": "steps must be a whole number of at least 2, got 1",
    "gradients --tolerant foo": "almeida_pineda",
    "gradients --tolerant dense": "almeida_pineda",
    "gradients --terms": "terms must have at least one value, got none",
    "gradients --terms 1 501": "terms must be at most the 500 settled steps that truncated goes back through, got 501",
    "gradients --radii 1": "radii must not be 1",
    "gradients --tolerant --series --refined --plain --through-time": "must name at least one adjoint, got none",
    "mondeq --limit 50 --batch 100": "batch must be at most the 50 training images, got 100",
    "mondeq --batch 60001": "batch must be at most the 60000 training images, got 60001",
    "associative --updates 2 --looks 5": "updates must be a multiple of the 5 looks, for as many before each; got 2",
    "associative --updates 3 --looks 2": "updates must be a multiple of the 2 looks, for as many before each; got 3",
}
GOOD_STUDIES = [
    "parity --bits 2 4 --units 3 6 --margin 1",
    "completion --bits 2 --noises 0 1",
    "hopfield_energy --gains 0.5 --shown 0.5",
    "gradients --tolerant --plain dense --terms 500",
    "mondeq --limit 50 --batch 50",
    "associative --updates 4 --looks 2",
]


def kind_of(annotation) -> type | None:
    """int, float or Literal, whatever it is wrapped in."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Annotated, typing.Union, types.UnionType, tuple):
        return kind_of(typing.get_args(annotation)[0])
    return typing.Literal if origin is typing.Literal else annotation


def flags(config) -> dict[str, list[str]]:
    """Command lines by name: each field of a dataclass with each value that its type cannot have."""
    hints = typing.get_type_hints(config, include_extras=True)
    named = {field.name: kind_of(hints[field.name]) for field in dataclasses.fields(config)}
    return {
        f"{name} {value!r}": ["split_digits", "--" + name.replace("_", "-"), value]
        for name, kind in named.items()
        for value in BAD.get(kind, [])
        if (name, value) != ("key", "0")
    }


CASES = STRUCTURE | flags(MODULE.Config) | flags(RUN.RunOptions)


def test_there_are_a_hundred_of_them():
    assert len(CASES) >= 100


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_command_line_is_refused_in_words(case, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(RUN.main, [*CASES[case], "--quiet"] if "--from" not in CASES[case] else CASES[case])


@pytest.mark.parametrize("line", SAID)
def test_it_is_said_what_is_wrong(line, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert SAID[line] in refused(RUN.main, [*line.split(), "--quiet"])


@pytest.mark.parametrize("line", SAID_BY_SWEEP)
def test_it_is_said_what_is_wrong_with_a_sweep(line, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert SAID_BY_SWEEP[line] in refused(SWEEP.main, line.split())


def test_a_good_command_line_is_not_refused(tmp_path, monkeypatch):
    """The negative control: the same call with what can be run goes on to run it."""
    monkeypatch.chdir(tmp_path)
    went_on = RuntimeError("went on to run")
    monkeypatch.setattr(RUN.runs, "carry_out", lambda *arguments, **options: (_ for _ in ()).throw(went_on))
    with pytest.raises(RuntimeError, match="went on"):
        RUN.main(["split_digits", "--steps", "2", "--quiet"])


@pytest.fixture
def unmeasured(tmp_path, monkeypatch):
    """No study measures anything: it says that it would."""

    def measure(config):
        raise RuntimeError("went on to measure")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in STUDY.questions():
        monkeypatch.setattr(importlib.import_module(f"experiments.studies.{name}"), "measure", measure)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("line", SAID_BY_STUDY)
def test_it_is_said_what_is_wrong_with_a_study_before_it_is_measured(line, refused):
    assert SAID_BY_STUDY[line] in refused(STUDY.main, [*line.split(), "--out", "kept"])


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("line", GOOD_STUDIES)
def test_a_good_study_is_not_refused(line):
    with pytest.raises(RuntimeError, match="went on"):
        STUDY.main([*line.split(), "--out", "kept"])


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_results_that_have_no_place_are_not_measured(out, refused, tmp_path):
    (tmp_path / "file").touch()
    assert f"--out must be a folder for new files, {out} cannot be one" in refused(STUDY.main, ["parity", "--out", out])
