"""Whether two runs came out the same, bit for bit, and if not, what differs: results, weights, surroundings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bptoolkit.runs.flat import flat
from bptoolkit.runs.record import CONFIG, load_results, read_json
from bptoolkit.runs.recorded import load_environment
from bptoolkit.runs.weights import load_params

if TYPE_CHECKING:
    import xarray

__all__ = ["differences", "surroundings"]

WHERE = ("python", "source", "machine", "devices", "data_devices", "settings", "packages")
PASSING = ("machine.load", "settings.compilation_cache_dir")  # of no account for the results
CLOCK = ("seconds", "compile_seconds", "ms_per_1000", "peak_bytes")  # cost, which no two runs share


def differences(one: Path | str, other: Path | str) -> list[str]:
    """A sentence on each variable and each set of weights that is not bit-identical; none if all are.

    Times and memory are not compared.

    Raises:
        RunError: a folder without results or parameters.
    """
    pair = [load_results(folder) for folder in (one, other)]
    found = [*_variables(*pair), *_weights(load_params(one), load_params(other))]
    configs = [read_json(Path(folder) / CONFIG) for folder in (one, other)]
    return found if configs[0] == configs[1] else ["The configurations differ.", *found]


def surroundings(one: Path | str, other: Path | str) -> list[str]:
    """What differs in versions, source, machine, devices and settings: where the cause may lie."""
    told = [dict(flat(load_environment(folder))) for folder in (one, other)]
    keys = [key for key in sorted(told[0] | told[1]) if key.split(".")[0] in WHERE and key not in PASSING]
    return [f"{key}: {told[0].get(key)} → {told[1].get(key)}" for key in keys if told[0].get(key) != told[1].get(key)]


def _variables(one: "xarray.Dataset", other: "xarray.Dataset") -> list[str]:
    names = [*dict.fromkeys([*map(str, one.variables), *map(str, other.variables)])]
    pairs = {name: [data[name].values if name in data.variables else None for data in (one, other)] for name in names}
    return [told for name, pair in pairs.items() if name not in CLOCK and (told := _difference(name, *pair))]


def _weights(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    found = []
    for name in dict.fromkeys([*one, *other]):
        trees = [jax.tree_util.tree_leaves_with_path(params.get(name)) for params in (one, other)]
        leaves = [{jax.tree_util.keystr(path): leaf for path, leaf in tree} for tree in trees]
        found += [
            told
            for path in dict.fromkeys([*leaves[0], *leaves[1]])
            if (told := _difference(f"Weights {name}{path}", leaves[0].get(path), leaves[1].get(path)))
        ]
    return found


def _difference(name: str, one: Any, other: Any) -> str | None:
    """A sentence, or None for the same bits."""
    if one is None or other is None:
        return f"{name} is in {'the second' if one is None else 'the first'} only."
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{name} is {one.dtype}{one.shape} in the first, {other.dtype}{other.shape} in the second."
    if one.tobytes() == other.tobytes():
        return None
    if one.dtype.kind in "OUSc":
        return f"{name} differs: {one.tolist()} and {other.tolist()}."
    bits = [np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}") for array in (one, other)]
    gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
    largest = np.max(gap, initial=0.0, where=np.isfinite(gap))
    return f"{name} differs in {int((bits[0] != bits[1]).sum())} of {one.size} values, by at most {largest:.3g}."
