"""The log of a run, log.jsonl: one JSON object a line, only ever added to; a run taken up again goes on with it."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bptoolkit.continual.walk import Moment
from bptoolkit.runs.environment import now
from bptoolkit.runs.record import RunError, finite, first_line
from bptoolkit.runs.watch import Watcher

__all__ = ["add_to_log", "load_log", "log"]

LOG = "log.jsonl"
PAUSE = 1.0  # seconds between two lines of progress, at least


def log(folder: Path | str) -> Watcher:
    """Write "begin", "progress" (at most one a second), "task" and "end" to log.jsonl.

    A number that is not finite is null.  After a kill, what was done twice stands there twice: each "begin" opens a
    process, and the later one counts.
    """
    folder, last = Path(folder), [-math.inf]

    def begin(config: Mapping[str, Any], names: Sequence[str]) -> None:
        add_to_log(folder, "begin", config=config, experiments=list(names), process=os.getpid())

    def progress(name: str, moment: Moment) -> None:
        if time.monotonic() - last[0] >= PAUSE:
            last[0] = time.monotonic()
            add_to_log(folder, "progress", experiment=name, **_told(moment))

    def task(name: str, moment: Moment) -> None:
        add_to_log(folder, "task", experiment=name, **_told(moment), accuracy=np.asarray(moment.accuracy).tolist())

    return Watcher(begin, progress, task, lambda state: add_to_log(folder, "end", state=state))


def add_to_log(folder: Path, event: str, **fields: Any) -> None:
    """One line, in one write; half a line that a killed process left is cut off first.

    Raises:
        RunError: when the system refuses.
    """
    line = json.dumps({"event": event, "time": now(), **finite(fields)}, ensure_ascii=False, allow_nan=False)
    try:
        with (folder / LOG).open("ab+") as file:
            _cut(file)
            file.write(line.encode() + b"\n")
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise RunError(f"{folder / LOG} cannot be written ({reason}). Free the disk.") from error


def load_log(folder: Path | str) -> list[dict[str, Any]]:
    """All whole lines, as they were written.

    Raises:
        RunError: when there is none, or a line that is no JSON object; half a last line is passed over.
    """
    path = Path(folder) / LOG
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        return [_object(line) for line in lines]
    except (OSError, ValueError) as error:
        raise RunError(f"{path} must be a log with one JSON object a line ({first_line(error)}).") from error


def _object(line: bytes) -> dict[str, Any]:
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError(f"a line is a {type(data).__name__}")
    return data


def _cut(file) -> None:
    """Back to the end of the last whole line."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _told(moment: Moment) -> dict[str, Any]:
    names = ("task", "tasks", "step", "steps", "loss", "unconverged")
    return {name: getattr(moment, name) for name in names}
