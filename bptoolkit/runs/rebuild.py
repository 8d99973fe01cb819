"""The experiments of a run, made again from its config.json: the module that defines them, and its Config."""

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from bptoolkit.continual.experiment import Experiment
from bptoolkit.runs.chosen import with_choice
from bptoolkit.runs.record import CONFIG, RunError, read_json

__all__ = ["load_config", "load_experiments"]


def load_config(folder: Path | str) -> dict[str, Any]:
    """What was asked of a run, as plain data: "experiment", "config", "seeds", "key"; "chosen" after a choice."""
    return read_json(Path(folder) / CONFIG)


def load_experiments(folder: Path | str) -> dict[str, Experiment]:
    """The experiments of a run, by "net/strategy/scenario", defined anew.

    The module that config.json names must be importable: start in the repository that the run was made in.

    Raises:
        RunError: where the module is missing, or its Config has changed.
    """
    config = load_config(folder)
    name, path = config.get("experiment"), Path(folder) / CONFIG
    try:
        module = importlib.import_module(str(name))
        define, kind = module.define, module.Config
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} names the experiment {name!r}, which is no module with a Config and a define ({error}). "
            "Start in the repository that it lies in, at the commit that environment.json names."
        ) from error
    asked = _made(kind, config.get("config"), path, "config")
    made = define(asked)
    return with_choice(made, asked, config["chosen"]) if config.get("chosen") else made


def _made(kind: Any, data: Any, path: Path, at: str) -> Any:
    """Plain data as a value of this type: dataclasses from dicts, tuples from lists, whatever else as it is."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, path, at)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(data, list):
        kinds = [parts[0]] * len(data) if len(parts) == 2 and parts[1] is Ellipsis else parts
        return tuple(_made(k, entry, path, at) for k, entry in zip(kinds, data, strict=False))
    if origin in (typing.Union, UnionType) and data is not None:
        fitting = [part for part in parts if dataclasses.is_dataclass(part) == isinstance(data, Mapping)]
        return _made(next((p for p in fitting if p is not type(None)), Any), data, path, at)
    return Path(data) if kind is Path and isinstance(data, str) else data


def _dataclass(kind: Any, data: Any, path: Path, at: str) -> Any:
    fields = [field.name for field in dataclasses.fields(kind) if field.init]
    if not isinstance(data, Mapping) or set(data) != set(fields):
        given = sorted(data) if isinstance(data, Mapping) else data
        raise RunError(
            f"{path} must give {at} the fields {fields} of {kind.__module__}.{kind.__qualname__}, got {given}. "
            "Go back to the commit that environment.json names."
        )
    types = typing.get_type_hints(kind)
    return kind(**{name: _made(types[name], data[name], path, f"{at}.{name}") for name in fields})
