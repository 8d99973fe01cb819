"""Where a data file is found, and how it gets there: `$BPTOOLKIT_DATA`, the user cache, the system, a mirror.

A reader, `read(content, origin)`, decides what is a good file: it returns what it made of the bytes or raises a
ValueError.  A file that is found but refused is an error and not passed over; a download that is refused is not kept.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Read = Callable[[bytes, str], T]  # the bytes of a file, and the path or address they came from

VARIABLE = "BPTOOLKIT_DATA"
ROUNDS = 2  # how often each mirror is tried
PAUSE = 1.0  # seconds before they are tried again
TIMEOUT = 30.0  # seconds without an answer


class Home(NamedTuple):
    """Where the files of one data set live."""

    folder: str  # below $BPTOOLKIT_DATA and below the user cache
    mirrors: tuple[str, ...]  # addresses that end in /
    system: tuple[Path, ...] = ()  # whole paths


def cache() -> Path:
    """The user's cache folder, where downloads are kept."""
    import pooch

    return Path(pooch.os_cache("bptoolkit"))


def places(home: Home) -> Iterator[Path]:
    """The folders that are looked through, first to last.  An empty $BPTOOLKIT_DATA counts as unset."""
    if os.environ.get(VARIABLE):
        yield Path(os.environ[VARIABLE]).expanduser() / home.folder
    yield cache() / home.folder
    yield from home.system


def find(home: Home, name: str) -> Path | None:
    """The first file called `name` or `name.gz`, unpacked before packed; None where no place has one."""
    candidates = (folder / file for folder in places(home) for file in (name, f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def obtain(home: Home, name: str, read: Read[T]) -> T:
    """What `read` makes of the file of that name: the first one found, else a download into the user cache.

    Raises:
      ValueError: from `read`, when the file that was found is not what it should be.
      FileNotFoundError: found nowhere, and no mirror gave it; lists every place and every mirror.
    """
    path = find(home, name)
    if path is not None:
        return read(path.read_bytes(), str(path))
    try:
        return download([f"{mirror}{name}.gz" for mirror in home.mirrors], cache() / home.folder, read)
    except OSError as error:
        raise FileNotFoundError(_not_found(home, name, error)) from error


def download(urls: Sequence[str], into: Path, read: Read[T], *, rounds: int = ROUNDS, pause: float = PAUSE) -> T:
    """What `read` makes of the first address that gives a good file, which is then kept in the folder `into`.

    The file gets its name by one rename after it was read: a process that is stopped, or two at once, leave a whole
    file or none.

    Raises:
      ConnectionError: no address gave a good file; says what each one gave.
      OSError: `into` cannot be written.
    """
    into.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    for attempt in range(rounds):
        time.sleep(pause if attempt else 0.0)
        for url in urls:
            with tempfile.TemporaryDirectory(prefix=".part-", dir=into) as scratch:
                part = Path(scratch) / url.rpartition("/")[2]
                try:
                    _transfer(url, part)
                    result = read(part.read_bytes(), url)
                except (OSError, ValueError) as error:  # of requests, of the disk, of `read`
                    failures[url] = _why(error)
                    continue
                part.replace(into / part.name)
                return result
    raise ConnectionError("no mirror gave a good file:" + "".join(f"\n  {u}\n    {why}" for u, why in failures.items()))


def _transfer(url: str, path: Path) -> None:
    """One request, with a progress bar on stderr; announced through pooch's logger."""
    import pooch

    pooch.get_logger().info("Downloading %s", url)
    pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)(url, str(path), None)


def _why(error: Exception) -> str:
    """One line; of a failed connection its reason, which requests wraps in a page of names."""
    inner = error.args[0] if error.args else error
    return next(iter(str(getattr(inner, "reason", error)).splitlines()), type(error).__name__)


def _not_found(home: Home, name: str, error: OSError) -> str:
    looked = [f"  {folder}{'' if folder.is_dir() else ' (no such folder)'}" for folder in places(home)]
    return "\n".join(
        [
            f"{name}, as it is or as .gz, was found in none of",
            *([] if os.environ.get(VARIABLE) else [f"  ${VARIABLE}/{home.folder} (the variable is not set)"]),
            *looked,
            f"and could not be downloaded: {error}",
            f"Set {VARIABLE} to a folder whose subfolder {home.folder} holds the file, or connect to the network.",
        ]
    )
