"""A watcher in a thread of its own: a server that is slow, or gone and asked again, does not hold up the run."""

import queue
import threading
import warnings
from collections.abc import Callable
from typing import Any

from bptoolkit.runs.watch import Watcher

__all__ = ["in_background"]


def in_background(watcher: Watcher, what: str, patience: float = 15.0) -> Watcher:
    """Call the watcher, in order, from one thread; `end` waits for it.

    Args:
        watcher: one that raises nothing, such as a `guarded` one.
        what: what is left out where patience ends, as the subject of a sentence: "MLflow".
        patience: seconds that `end` waits for what has not been told yet.
    """
    calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()

    def work() -> None:
        while (call := calls.get()) is not None:
            getattr(watcher, call[0])(*call[1])

    thread = threading.Thread(target=work, name=what, daemon=True)  # never keeps the process alive

    def put(field: str) -> Callable[..., None]:
        return lambda *arguments: calls.put((field, arguments))

    def begin(*arguments: Any) -> None:
        thread.start()
        calls.put(("begin", arguments))

    def end(state: str) -> None:
        calls.put(("end", (state,)))
        calls.put(None)
        if thread.is_alive():
            thread.join(patience)
        if thread.is_alive():
            warnings.warn(f"{what} has not answered for {patience:g} s: it lacks the end of this run.", stacklevel=2)

    return Watcher(begin, put("progress"), put("task"), end)
