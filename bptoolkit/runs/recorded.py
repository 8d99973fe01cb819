"""Where a run took place, read back from its environment.json and checked field by field."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from bptoolkit.runs.record import ENVIRONMENT, RunError, read_json

__all__ = ["load_environment", "require_finished"]


def load_environment(folder: Path | str) -> dict[str, Any]:
    """State, command, start and end, versions, source, machine, devices and settings of a run.

    Raises:
        RunError: when environment.json is missing or damaged.
    """
    path = Path(folder) / ENVIRONMENT
    environment = read_json(path)
    for name, (right, required) in NEEDED.items():
        if not right(environment.get(name)) or (name == "ended" and name not in environment):
            told = "nothing" if name not in environment else repr(environment[name])
            raise RunError(f"{path} must hold {name}, {required}; got {told[:80]}.")
    return environment


def require_finished(folder: Path | str) -> None:
    """Raise unless the run has ended well, so that what lies in its folder is what its record tells of.

    Raises:
        RunError: for a run in another state, or a record that is missing or damaged.
    """
    state = load_environment(folder)["state"]
    if state != "finished":
        raise RunError(f"{folder} must hold a finished run, got one that is {state}. Give its command again first.")


def is_time(value: Any) -> bool:
    """Whether this is a time as `environment.now` writes it."""
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def is_source(value: Any) -> bool:
    """Whether this is a commit, and whether files differed from it."""
    return isinstance(value, dict) and isinstance(value.get("commit"), str) and "dirty" in value


def is_count(value: Any) -> bool:
    """Whether this is a whole number of at least 1."""
    return type(value) is int and value >= 1


def is_starts(value: Any) -> bool:
    """Whether these are earlier starts, which have ended at some time or have left no end."""
    has_times = lambda start: is_time(start.get("started")) and (start.get("ended") is None or is_time(start["ended"]))
    return isinstance(value, list) and all(isinstance(start, dict) and has_times(start) for start in value)


NEEDED: dict[str, tuple[Callable[[Any], bool], str]] = {  # of environment.json
    "state": (lambda value: isinstance(value, str), "a word"),
    "started": (is_time, "a time with its zone"),
    "ended": (lambda value: value is None or is_time(value), "a time with its zone, or null"),
    "command": (lambda value: isinstance(value, str), "a line of text"),
    "source": (lambda value: value is None or is_source(value), "{commit, dirty} or null"),
    "earlier": (lambda value: value is None or is_starts(value), "starts with their times, or null"),
    "data_devices": (lambda value: value is None or is_count(value), "a number of devices, or null"),
    "packages": (lambda value: value is None or isinstance(value, dict), "names with their versions"),
}
