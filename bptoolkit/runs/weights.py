"""Trained parameters in one file: any pytree of arrays, read back without the code that made it."""

import io
import json
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bptoolkit.runs.leaves import Kind, pack, unpack
from bptoolkit.runs.record import RunError, first_line, replacing

__all__ = ["load_params", "load_weights", "save_weights"]

PARAMS = "params"  # the folder in a run folder: params/net/strategy/scenario.npz
STRUCTURE = "structure"  # the member of such a file that is no leaf


def load_params(folder: Path | str) -> dict[str, Any]:
    """The trained parameters of a run, by "net/strategy/scenario"; each leaf with a leading axis of seeds.

    Dicts, lists, tuples and named tuples come back as such; nodes of another type come back as dicts.

    Raises:
        RunError: when there are none, or a file is damaged.
    """
    top = Path(folder) / PARAMS
    found = {path.relative_to(top).with_suffix("").as_posix(): path for path in sorted(top.rglob("*.npz"))}
    if not found:
        raise RunError(f"{top} holds no parameters (yet). Run the experiment, or name its folder.")
    return {name: load_weights(path) for name, path in found.items()}


def save_weights(path: Path, tree: Any) -> None:
    """Write a pytree of arrays as an .npz, whole or not at all."""
    leaves = [pack(leaf) for leaf in jax.tree.leaves(tree)]
    about = {"tree": _structure(tree, iter(range(len(leaves)))), "kinds": [kind for _, kind in leaves]}
    members: dict[str, Any] = {STRUCTURE: np.array(json.dumps(about))}
    members |= {f"leaf{i}": array for i, (array, _) in enumerate(leaves)}
    whole = io.BytesIO()
    np.savez(whole, **members)
    with replacing(path) as part:
        part.write_bytes(whole.getbuffer())


def load_weights(path: Path) -> Any:
    """Read what `save_weights` wrote; every byte is checked against its checksum.

    Raises:
        RunError: when it is cut short, damaged, or something else.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = json.loads(file[STRUCTURE].item())
            kinds = [Kind(*kind) for kind in about["kinds"]]
            return _rebuilt(about["tree"], [unpack(file[f"leaf{i}"], kind) for i, kind in enumerate(kinds)])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} must hold parameters, and cannot be read ({first_line(error)}).") from error


def _structure(tree: Any, number: Iterator[int]) -> Any:
    """The tree as plain data: leaves by number, in the order of `jax.tree.leaves`."""
    if tree is None:
        return {"kind": "none"}
    children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    if len(children) == 1 and children[0][0] == ():
        return next(number)
    kind, name = "dict", None
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        kind, name = "named", type(tree).__name__
    elif type(tree) in (list, tuple):
        kind = type(tree).__name__
    entries = [[_label(path[0]), _structure(child, number)] for path, child in children]
    return {"kind": kind, "name": name, "entries": entries}


def _label(entry: Any) -> str | int:
    """The key, place or field under which a child stands."""
    label = next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name))
    return label if isinstance(label, int) else str(label)


def _rebuilt(tree: Any, leaves: list[Any]) -> Any:
    if isinstance(tree, int):
        return leaves[tree]
    if tree["kind"] == "none":
        return None
    labels, children = [label for label, _ in tree["entries"]], [_rebuilt(sub, leaves) for _, sub in tree["entries"]]
    if tree["kind"] == "named":
        return namedtuple(tree["name"], labels)(*children)
    if tree["kind"] == "dict":
        return dict(zip(labels, children, strict=True))
    return {"list": list, "tuple": tuple}[tree["kind"]](children)
