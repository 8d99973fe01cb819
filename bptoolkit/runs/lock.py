"""One process on one folder: the kernel holds the lock, and lets it go when the process ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bptoolkit.runs.record import RunError, first_line

__all__ = ["InUse", "locked"]

LOCK = ".lock"


class InUse(RunError):
    """A folder that cannot be held: another process does, or there are no locks."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder.  The file `.lock` stays behind, and means nothing: only a living process can hold it.

    POSIX only (`flock`).

    Raises:
        InUse: when another process holds it, or there are no locks on this disk.
        RunError: when it cannot be written.
    """
    import fcntl

    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}). Free the disk or name a folder that you own."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUse(_held(folder, os.pread(descriptor, 200, 0), error)) from error
        os.ftruncate(descriptor, 0)
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Say who holds it; a full disk is told by whatever must be written next."""
    try:
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
    except OSError:
        return


def _held(folder: Path, by: bytes, error: OSError) -> str:
    if not isinstance(error, BlockingIOError):
        return f"{folder} cannot be locked ({first_line(error)}). Put runs on a file system that has locks."
    holder = by.decode(errors="replace") or "another process"
    return f"{folder} is in use by {holder}. One process runs in a folder: wait for it, or stop it."
