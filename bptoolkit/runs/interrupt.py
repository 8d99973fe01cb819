"""Ctrl-C, and SIGTERM as a cluster sends it: a run ends where it can be taken up again."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["Interrupted", "Interruption", "interruptible"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was asked to end, and has, in all its processes; `number` is None in those that have heard no signal."""

    def __init__(self, number: int | None, kept: str):
        cause = "by another process" if number is None else f"by {signal.Signals(number).name}"
        super().__init__(f"Interrupted {cause}. {kept}")
        self.number = signal.SIGTERM if number is None else number
        self.exit_code = 128 + self.number  # as a shell reports it


class Interruption:
    """Whether a signal has come.  A second one breaks off, with a KeyboardInterrupt, whatever others do."""

    number: int | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.number is not None:
            raise KeyboardInterrupt(f"Interrupted twice, by {signal.Signals(number).name}")
        self.number = number
        os.write(2, b"Stopping after the updates under way, and saving. Once more stops at once.\n")

    @property
    def asked(self) -> bool:
        """Whether one has come."""
        return self.number is not None

    def check(self, kept: str) -> None:
        """Raise if one has come; `kept` says in a sentence what is saved."""
        if self.asked:
            self.stop(kept)

    def stop(self, kept: str) -> NoReturn:
        """Raise, also for one that has come to another process of the run only."""
        raise Interrupted(self.number, kept)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Note signals in place of breaking off, while this is open; in the main thread only, where Python sees them.

    What has come inside another `interruptible` is noted there too: a signal in the last moments of one run, when there
    is nothing left to stop, ends the runs that would follow it.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    former = {number: signal.signal(number, interruption.note) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        outer = getattr(former[signal.SIGINT], "__self__", None)
        if isinstance(outer, Interruption) and not outer.asked:
            outer.number = interruption.number
