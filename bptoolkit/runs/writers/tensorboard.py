"""TensorBoard's event files: one folder, and so one curve, for each combination.

Every number is in the file before the run goes on: what a killed run has told can be read.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bptoolkit.runs.watch import Sink, Watcher, guarded, per_combination
from bptoolkit.runs.writers.needed import needed

__all__ = ["tensorboard"]


def tensorboard(folder: Path | str) -> Watcher:
    """Write event files to `folder`/net/strategy/scenario: `tensorboard --logdir folder` shows them, at any time.

    Where a run goes on from an earlier update, TensorBoard is told to forget what came after it.

    Raises:
        RunError: tensorboardX is not installed.
    """
    needed("tensorboardX", "tensorboard", "Writing event files")
    return guarded(per_combination(lambda config, name, step: _sink(Path(folder) / name, step)), "TensorBoard")


def _sink(folder: Path, start: int) -> Sink:
    # Not its SummaryWriter, which leaves the last numbers in the queue of another thread.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  (made at import)
    from tensorboardX.summary import scalar

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
    writer.write_event(
        Event(wall_time=time.time(), step=start, session_log=SessionLog(status=SessionLog.SessionStatus.START))
    )

    def log(values: Mapping[str, Any], step: int) -> None:
        for name, value in values.items():
            writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        writer.flush()

    return Sink(log, lambda state: writer.close() and None)
