"""What the processes of a run hang by: their connections to process 0, whose end is told in a sentence.

JAX's runtime aborts a process (SIGABRT, a stack trace) as soon as the coordination service, which process 0 holds, is
gone or says that another process is, and offers Python no say in it.  So the service is reached through relays:

    JAX's client  ⇄  relay in its process  ⇄  relay in process 0  ⇄  JAX's service

JAX never sees a connection end; the relays do, at once.  The one that does waits a little for the run to find out by
itself in an exchange (which is the same end), and ends its process.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread, Timer, current_thread, main_thread
from typing import NoReturn

import jax

__all__ = ["GONE", "LOST", "hang_by", "hold", "joined", "patient"]

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
joined = Event()  # set once JAX has found all processes (its client exists before); earlier ends are JAX's to mend
PIECE = 65536  # bytes


def hang_by(coordinator: str, silence: float) -> str:
    """Relay a coordination service; the address to give to `jax.distributed.initialize` in its place.

    Once all have `joined`, the process ends with the sentence `GONE` and the code `LOST`, `GRACE` seconds after
    process 0 has: its system closes the connection.  Where it cannot, as in a broken network, silence tells.

    Args:
        coordinator: HOST:PORT of process 0.
        silence: seconds without a word from process 0 after which it counts as gone.  JAX aborts the process itself
            when no heartbeat was answered for its time-out, and sends two in that time: 0.8 of it is right.
    """
    host, _, port = coordinator.rpartition(":")
    listening = socket.create_server(("127.0.0.1", 0))
    _relay(listening, (host.strip("[]"), int(port)), silence, "Process 0")
    return f"127.0.0.1:{listening.getsockname()[1]}"


def hold(port: int, silence: float) -> str:
    """Relay the others to the coordination service of this process; the address at which JAX is to open it.

    The process ends as in `hang_by`, when any of the others has gone.

    Args:
        port: at which the others look for process 0.
        silence: as in `hang_by`.

    Raises:
        ValueError: when the port is taken.
    """
    both = socket.has_dualstack_ipv6()
    family = {"family": socket.AF_INET6, "dualstack_ipv6": True} if both else {}
    try:
        listening = socket.create_server(("", port), **family)
    except OSError as error:
        raise ValueError(
            f"Process 0 must be able to listen at port {port} ({error.strerror}). Name another in --coordinator."
        ) from error
    with socket.create_server(("127.0.0.1", 0)) as found:
        inside = found.getsockname()[:2]
    _relay(listening, inside, silence, "Another process")
    return f"127.0.0.1:{inside[1]}"


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


def _relay(listening: socket.socket, target: tuple[str, int], silence: float, whose: str) -> None:
    """Carry each connection to the target, from beside the main thread; `whose` end is watched for."""
    Thread(target=_serve, args=(listening, target, silence, whose), daemon=True).start()


def _serve(listening: socket.socket, target: tuple[str, int], silence: float, whose: str) -> None:
    while True:
        inner, _ = listening.accept()
        Thread(target=_carry, args=(inner, target, silence, whose), daemon=True).start()


def _carry(inner: socket.socket, target: tuple[str, int], silence: float, whose: str) -> None:
    """Carry one connection both ways until the watched side ends it; before all have `joined`, JAX tries again.

    It ends so where process 0 listens already, and JAX does not listen behind it yet.
    """
    with inner, suppress(OSError), socket.create_connection(target, silence) as outer:
        watched, own = (outer, inner) if whose == "Process 0" else (inner, outer)
        watched.settimeout(silence)
        own.settimeout(None)
        Thread(target=_pour, args=(own, watched), daemon=True).start()
        _pour(watched, own)
        if joined.is_set():
            time.sleep(GRACE)
            if jax.distributed.is_initialized():  # no more where the run has ended well
                _end(GONE.format(whose))


def _pour(source: socket.socket, sink: socket.socket) -> None:
    """Hand on what comes, until no more comes, or nothing for as long as the source waits."""
    with suppress(OSError):
        while piece := source.recv(PIECE):
            sink.sendall(piece)
