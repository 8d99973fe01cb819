"""What a process that follows hangs by: the connection to process 0, whose end is told in a sentence.

JAX's runtime aborts a process (SIGABRT, a stack trace) as soon as the coordination service, which process 0 holds, is
gone, and offers Python no say in it.  So a follower reaches the service through this relay within itself:

    JAX's client  ⇄  relay  ⇄  process 0

JAX never sees the connection end; the relay does, waits a little for the run to find out by itself in an exchange
(which is the same end), and ends the process.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread, Timer, current_thread, main_thread
from typing import NoReturn

import jax

__all__ = ["GONE", "LOST", "hang_by", "patient"]

LOST = 3  # the exit code where another process has gone
GONE = (
    "{} of this run has gone, or cannot be reached. What was saved is kept: start the same command again in every "
    "process, and the run goes on from the last save."
)
LATE = (
    "The {} processes of this run have not all come within {:.0f} s. Start the same command in every process, each "
    "with its own --process; all must reach {}."
)
GRACE = 2.0  # seconds in which a process that is in an exchange ends by itself
PIECE = 65536  # bytes


def hang_by(coordinator: str, silence: float) -> str:
    """Relay a coordination service; the address to give to `jax.distributed.initialize` in its place.

    Once JAX has joined, the process ends with the sentence `GONE` and the code `LOST`, `GRACE` seconds after process 0
    has: its system closes the connection.  Where it cannot, as in a broken network, silence tells.

    Args:
        coordinator: HOST:PORT of process 0.
        silence: seconds without a word from process 0 after which it counts as gone.  JAX aborts the process itself
            when no heartbeat was answered for its time-out, and sends two in that time: 0.8 of it is right.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    Thread(target=_serve, args=(listening, coordinator, silence), daemon=True).start()
    return f"127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def patient(seconds: float, processes: int, coordinator: str) -> Iterator[None]:
    """Wait for the others in JAX's runtime, where Python hears no signal: for so long, and Ctrl-C ends at once."""
    waiting = Timer(seconds, _end, [LATE.format(processes, seconds, coordinator)])
    waiting.daemon = True
    waiting.start()
    listening = current_thread() is main_thread()  # where alone Python sees signals
    former = signal.signal(signal.SIGINT, signal.SIG_DFL) if listening else None
    try:
        yield
    finally:
        waiting.cancel()
        if listening:
            signal.signal(signal.SIGINT, former)


def _end(sentence: str) -> NoReturn:
    """Say why, and end the process from beside its main thread."""
    print(f"Error: {sentence}", file=sys.stderr, flush=True)
    os._exit(LOST)


def _serve(listening: socket.socket, coordinator: str, silence: float) -> None:
    """Carry each connection of JAX's client."""
    while True:
        inner, _ = listening.accept()
        Thread(target=_carry, args=(inner, coordinator, silence), daemon=True).start()


def _carry(inner: socket.socket, coordinator: str, silence: float) -> None:
    """Carry one connection both ways until process 0 ends it; before JAX has joined, JAX tries again."""
    host, _, port = coordinator.rpartition(":")
    with inner, suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), silence) as outer:
        Thread(target=_pour, args=(inner, outer), daemon=True).start()
        _pour(outer, inner)
        time.sleep(GRACE)
        if jax.distributed.is_initialized():
            _end(GONE.format("Process 0"))


def _pour(source: socket.socket, sink: socket.socket) -> None:
    """Hand on what comes, until no more comes, or nothing for as long as the source waits."""
    with suppress(OSError):
        while piece := source.recv(PIECE):
            sink.sendall(piece)
