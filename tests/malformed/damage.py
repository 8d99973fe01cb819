"""Ways to damage a file, each a function of its content; None removes it, a folder takes its place."""

import random
from collections.abc import Callable
from pathlib import Path

FOLDER = object()


def cut(share: float) -> Callable[[bytes], bytes]:
    """What a copy that was broken off leaves."""
    return lambda content: content[: int(share * len(content))]


def flipped(draw: int) -> Callable[[bytes], bytes]:
    """One bit of one byte, drawn by number."""

    def damaged(content: bytes) -> bytes:
        place = random.Random(draw).randrange(len(content))
        return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]

    return damaged


DAMAGE: dict[str, Callable[[bytes], bytes | object | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut in half": cut(0.5),
    "cut near its end": cut(0.95),
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda content: random.Random(0).randbytes(len(content)),
    "a folder": lambda content: FOLDER,
}


def damage(path: Path, how: Callable[[bytes], bytes | object | None]) -> None:
    """Do it to a file."""
    content = how(path.read_bytes())
    path.unlink()
    if content is FOLDER:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
