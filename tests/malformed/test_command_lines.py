"""Malformed command lines: every flag of an experiment with values that it cannot have, in one process."""

import dataclasses
import importlib
import types
import typing

import pytest

from tests.malformed.conftest import load

MODULE = importlib.import_module("experiments.split_digits")
RUN = load("run")
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


def test_a_good_command_line_is_not_refused(tmp_path, monkeypatch):
    """The negative control: the same call with what can be run goes on to run it."""
    monkeypatch.chdir(tmp_path)
    went_on = RuntimeError("went on to run")
    monkeypatch.setattr(RUN.runs, "carry_out", lambda *arguments, **options: (_ for _ in ()).throw(went_on))
    with pytest.raises(RuntimeError, match="went on"):
        RUN.main(["split_digits", "--steps", "2", "--quiet"])
