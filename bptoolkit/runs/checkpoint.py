"""Where a combination stands, on the disk (Orbax): the newest state and the one before it.

A checkpoint is a folder with a number.  It is written under another name, flushed and moved to its place in one step,
and carries a digest of each of its files: a damaged one is noticed, and the one before it taken.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bptoolkit.continual.layout import Layout
from bptoolkit.continual.walk import RunState
from bptoolkit.learning.fit import Curves
from bptoolkit.runs.leaves import Kind, pack, unpack
from bptoolkit.runs.record import RunError, difference, first_line

__all__ = ["load_state", "require_same", "save_state"]

ABOUT, STATE = "about.json", "state"
BLOCK = 4096  # bytes
KEPT = 2  # should the newest be damaged
STACKED = ("finite", "within", "probed", "diagnosed")  # fields of a state that are tuples of arrays of one shape


def save_state(folder: Path, state: RunState, about: Mapping[str, Any]) -> None:
    """Add a checkpoint; those before the last one are removed.

    Args:
        folder: of this combination alone.
        state: what `run` hands to its hooks.
        about: plain data that must be the same when it is read: configuration and software.

    Raises:
        RunError: when the system refuses; earlier checkpoints are still there.
    """
    there = _numbered(folder)
    part, path = folder / ".part", folder / f"{1 + max(there, default=0):06d}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write(part, state, about)
        os.replace(part, path)
        _flush(folder)
    except Exception as error:  # Orbax reports a full disk as any of several types
        shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or first_line(error)[:200]
        raise RunError(
            f"A checkpoint cannot be written in {folder} ({reason}). "
            "Free the disk and start the same command: it goes on from the last one that was saved."
        ) from error
    for number in sorted(there)[: 1 - KEPT]:
        shutil.rmtree(there[number], ignore_errors=True)


def load_state(folder: Path, about: Mapping[str, Any]) -> tuple[RunState | None, list[str]]:
    """The newest state that can be used, and a sentence on each that cannot; those are removed.

    Raises:
        RunError: a whole checkpoint of another configuration or other software; nothing is removed.
    """
    said, there = [], _numbered(folder)
    for number in sorted(there, reverse=True):
        try:
            return _read(there[number], about), said
        except RunError:
            raise
        except Exception as error:  # of any kind, as its bytes may be anything
            last = number == min(there)
            instead = "the combination starts anew" if last else "the one before it is taken"
            said.append(f"The checkpoint {there[number]} is damaged ({first_line(error)}): {instead}.")
            shutil.rmtree(there[number], ignore_errors=True)
    return None, said


def _numbered(folder: Path) -> dict[int, Path]:
    return {int(path.name): path for path in folder.glob("[0-9]*") if path.name.isdecimal()}


def _write(part: Path, state: RunState, about: Mapping[str, Any]) -> None:
    packed = {name: pack(leaf) for name, leaf in _named(state).items()}
    _reserve(part / "reserved", [array.nbytes for array, _ in packed.values()])
    with _quiet():
        _orbax().save(part.resolve() / STATE, {name: array for name, (array, _) in packed.items() if array.size})
    body = {
        "about": dict(about),
        "layout": state.layout._asdict(),
        "seconds": state.seconds,
        "arrays": {name: kind._asdict() for name, (_, kind) in packed.items()},
        "files": {path.relative_to(part).as_posix(): _digest(path) for path in _files(part)},
    }
    text = json.dumps(body, sort_keys=True)
    (part / ABOUT).write_text(json.dumps({"body": text, "digest": _digest_of(text.encode())}), encoding="utf-8")
    for path in [*_files(part), *(path for path in part.rglob("*") if path.is_dir()), part]:
        _flush(path)


def _reserve(path: Path, sizes: list[int]) -> None:
    """Raise now where the disk will not hold the arrays: Orbax would fill the terminal with what its threads meet."""
    blocks = sum(size // BLOCK + 4 for size in sizes) + 32  # a file, its description and its folder for each
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, blocks * BLOCK)
    path.unlink()


def _read(path: Path, about: Mapping[str, Any]) -> RunState:
    told = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    if told["digest"] != _digest_of(told["body"].encode()):
        raise ValueError(f"{ABOUT} was changed")
    body = json.loads(told["body"])
    require_same(path, body["about"], about)
    for name, digest in body["files"].items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            raise ValueError(f"{name} is not as it was written")
    arrays = _orbax().restore(path.resolve() / STATE)
    kinds = {name: Kind(**kind) for name, kind in body["arrays"].items()}
    empty = lambda kind: np.zeros(kind.shape, kind.dtype)
    leaves = {name: unpack(arrays[name] if name in arrays else empty(kind), kind) for name, kind in kinds.items()}
    return _state(leaves, body["seconds"], Layout(**body["layout"]))


def require_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise unless what lies at `path` belongs to this run, made by this software."""
    here = json.loads(json.dumps(here))
    if there != here:
        raise RunError(
            f"{path} was saved by other software or another run ({difference(there, here)}): what is left would not "
            "be of one piece with it. Go back to the former, or start anew (--again)."
        )


def _named(state: RunState) -> dict[str, Any]:
    """Every array of a state under a name; what is one per task or stretch, stacked."""
    arrays = {f"progress{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state.progress))}
    arrays["tables"] = np.stack(state.tables)
    for name in STACKED:
        if pieces := getattr(state, name):
            arrays[name] = np.stack(pieces)
    for kind, pieces in (("curves", state.curves), ("begun", state.begun)):
        if pieces:
            arrays |= {f"{kind}-{name}": np.stack([getattr(c, name) for c in pieces]) for name in Curves._fields}
    return arrays


def _state(arrays: dict[str, Any], seconds: float, layout: Layout) -> RunState:
    """The inverse of `_named`; `run` gives the progress its structure."""

    def curves(kind: str) -> tuple[Curves, ...]:
        stacks = [arrays.get(f"{kind}-{name}", ()) for name in Curves._fields]
        return tuple(Curves(*pieces) for pieces in zip(*stacks, strict=True))

    progress: Any = [arrays[name] for name in sorted(arrays) if name.startswith("progress")]
    tables = tuple(arrays["tables"])
    stacked = {name: tuple(arrays.get(name, ())) for name in STACKED}
    begun = curves("begun")
    return RunState(progress, tables, curves("curves"), begun=begun, seconds=seconds, layout=layout, **stacked)


def _orbax():
    """A writer of plain arrays, one file each, of process 0 alone: no other is waited for."""
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone")
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Orbax logs: that files of several processes are not merged; errors, which are raised as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()[:32]


def _digest_of(data: bytes) -> str:
    return hashlib.blake2b(data).hexdigest()[:32]


def _flush(path: Path) -> None:
    """A file or a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
