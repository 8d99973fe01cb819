"""A run folder: what was asked (config.json), where it ran (environment.json), what came out (results.nc, params/).

Every file is written whole under another name, flushed to the disk, and moved to its place in one step: a reader finds
the old file or the new one, never half of one.  A folder belongs to one configuration for ever.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bptoolkit.runs.environment import environment, now

if TYPE_CHECKING:
    import xarray

CONFIG, ENVIRONMENT, RESULTS = "config.json", "environment.json", "results.nc"
UNFINISHED = "unfinished"  # a folder: what a run that was broken off is taken up from
FOUND = (RESULTS, "summary.json", "report.html", "tables.md", "tables.tex", "figures")  # what a run has found
TRAINED = (UNFINISHED, "params")  # what a run goes on with
AXES = ("net", "strategy", "scenario", "seed", "after", "on")  # of the variable `accuracy`
STATES = ("finished", "failed", "interrupted")


class RunError(Exception):
    """A run folder or file that cannot be used: what was required, what was found, what to do."""


class Run(NamedTuple):
    """A folder that is open for writing, or, where `found`, one that already holds this run, finished."""

    folder: Path
    found: bool


def run_name(config: Mapping[str, Any]) -> str:
    """The experiment's name and eight hex digits of the configuration's SHA-256: `split_digits-3f2a91c0`."""
    config = plain(config)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^\w-]+", "_", config["experiment"].rsplit(".", 1)[-1])
    return f"{name}-{digest[:8]}"


def open_run(folder: Path | str, config: Mapping[str, Any], *, again: bool = False, data_devices: int = 1) -> Run:
    """Claim `folder` for the run that `config` describes, and record where and when it starts.

    A folder in which this very run has finished is returned untouched with `found` true, unless `again`.  Where it was
    broken off, what it left is kept for it to be taken up, and the record tells of the earlier starts too.  What an
    earlier start has found is removed before that: no result ever lies beside the record of another start.

    Args:
        folder: the run's own folder, made if it is missing; usually `runs / run_name(config)`.
        config: plain data that decides the results: {"experiment": …, "config": {…}, "seeds": […]}.
        again: start anew even if it has finished; what it has trained is removed too.
        data_devices: that share the rows of a batch, for the record.

    Raises:
        RunError: for another run's folder, a folder of other things, a file, or one that cannot be written.
    """
    folder, config = Path(folder), plain(config)
    claim(folder, config)
    if is_finished(folder) and not again:
        return Run(folder, found=True)
    for name in (*FOUND, *TRAINED) if again else FOUND:
        remove(folder / name)
    told = environment(config) | {"data_devices": data_devices, "earlier": earlier(folder)}
    write_json(folder / CONFIG, config)
    write_json(folder / ENVIRONMENT, told)
    return Run(folder, found=False)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be removed ({first_line(error)}). Remove it, or own it.") from error


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` has ended well and left its results."""
    return (folder / RESULTS).is_file() and state_of(folder) == "finished"


def earlier(folder: Path) -> list[dict[str, Any]]:
    """The records of those starts whose work a run in `folder` goes on with, without what is long."""
    if not (folder / UNFINISHED).is_dir() or not (folder / ENVIRONMENT).is_file():
        return []
    last = read_json(folder / ENVIRONMENT)
    before = last.pop("earlier", None) or []
    return [*before, {name: value for name, value in last.items() if name != "packages"}]


def other_devices(folder: Path) -> str | None:
    """A sentence where a run goes on on other devices than it began with, or splits batches over another number."""
    told = read_json(folder / ENVIRONMENT)
    first = next(iter(told["earlier"]), told)
    over = [start.get("data_devices") or 1 for start in (first, told)]
    split = ["" if over[0] == over[1] else f" with --data-devices {count}" for count in over]
    before, now = (", ".join(map(str, start["devices"])) + how for start, how in zip((first, told), split, strict=True))
    if before == now:
        return None
    return (
        f"This run began on {before} and goes on on {now}: its results are the same to rounding, not bit for bit. What "
        "it began with would make them so."
    )


def finish(folder: Path | str, state: str = "finished", error: str | None = None) -> None:
    """Record how and when the run ended: "finished", "failed" or "interrupted", and what stopped it."""
    if state not in STATES:
        raise RunError(f"A run ends in one of {', '.join(STATES)}; got {state!r}.")
    path = Path(folder) / ENVIRONMENT
    write_json(path, read_json(path) | {"state": state, "error": error, "ended": now()})


def save_results(folder: Path | str, results: "xarray.Dataset") -> Path:
    """Write results.nc (NetCDF-4): every bit, dtype, coordinate and attribute comes back from `load_results`.

    Attributes must be text, numbers or lists of these; a list of one comes back as that one.
    """
    save_dataset(Path(folder) / RESULTS, results)
    return Path(folder) / RESULTS


def load_results(folder: Path | str) -> "xarray.Dataset":
    """Read results.nc into memory.

    Raises:
        RunError: when it is missing, cut short, damaged, or not the results of a run.
    """
    path = Path(folder) / RESULTS
    if not path.is_file():
        raise RunError(f"{path} is missing: the folder holds no results (yet). Run the experiment, or name its folder.")
    results = load_dataset(path)
    dims = results["accuracy"].dims if "accuracy" in results else ()
    if not set(AXES) <= set(dims):  # a grid has more
        raise RunError(f"{path} must hold accuracy[{', '.join(AXES)}], got [{', '.join(map(str, dims))}].")
    return results


def save_dataset(path: Path, data: "xarray.Dataset") -> None:
    """A NetCDF-4 file in which every block has its checksum, whole or not at all.

    It is made in memory: HDF5 does not survive a full disk.
    """
    shaped = [name for name in data.data_vars if data[name].size and data[name].ndim]
    whole = data.to_netcdf(engine="h5netcdf", encoding={name: {"fletcher32": True} for name in shaped})
    with replacing(path) as part:
        part.write_bytes(whole)


def load_dataset(path: Path) -> "xarray.Dataset":
    """Read what `save_dataset` wrote into memory."""
    import xarray

    try:
        return xarray.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        size = path.stat().st_size if path.is_file() else 0
        raise RunError(
            f"{path} must be a whole NetCDF file, got {size} bytes that cannot be read ({first_line(error)}). "
            "Delete it and run the experiment again."
        ) from error


def recorded_devices(folder: Path | str) -> int | None:
    """How many CPU devices the run in `folder` began with; None where there was none, or where it had others."""
    path = Path(folder) / ENVIRONMENT
    told = read_json(path) if path.is_file() else {}
    starts = told.get("earlier")
    first = starts[0] if isinstance(starts, list) and starts and isinstance(starts[0], dict) else told
    devices = first.get("devices")
    if not isinstance(devices, list) or not devices:
        return None
    return len(devices) if all(str(device).startswith("cpu:") for device in devices) else None


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON gives it back: tuples become lists; what JSON cannot hold is refused."""
    try:
        data = json.loads(json.dumps(dict(config), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"A run's configuration must be plain data (numbers, text, lists, dicts), got: {first_line(error)}. "
            "Keep the values from which the experiment is defined, not what is made of them."
        ) from error
    if not isinstance(data.get("experiment"), str):
        raise RunError(f'A run\'s configuration must name its "experiment", got the keys {sorted(data)}.')
    return data


def claim(folder: Path, config: dict[str, Any]) -> None:
    """Make the folder, or see that it holds this run or nothing."""
    elsewhere = f"Give another folder, or none, for the default name {run_name(config)}."
    try:
        if folder.is_file():
            raise RunError(f"A run needs a folder, got the file {folder}. {elsewhere}")
        folder.mkdir(parents=True, exist_ok=True)
        held = [path.name for path in folder.iterdir() if not path.name.startswith(".")]  # left by a killed process
    except OSError as error:
        raise RunError(f"The run folder {folder} cannot be made or read ({error.strerror}). {elsewhere}") from error
    if CONFIG in held:
        other = read_json(folder / CONFIG)
        if other != config:
            raise RunError(f"{folder} already holds another run ({difference(other, config)}). {elsewhere}")
    elif held:
        raise RunError(f"A run folder must be new, empty, or hold this run; {folder} holds {held[0]}. {elsewhere}")


def difference(old: Any, new: Any, at: str = "") -> str:
    """The first place where two configurations differ: "config.rate is 0.01 there, 0.1 asked for"."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{at or 'its configuration'} is {json.dumps(old)} there, {json.dumps(new)} asked for"
    key = min(k for k in old.keys() | new.keys() if k not in old or k not in new or old[k] != new[k])
    return difference(old.get(key), new.get(key), f"{at}.{key}" if at else key)


def state_of(folder: Path) -> str | None:
    """How the run in `folder` ended, "running" if it has not; None where nothing was recorded."""
    path = folder / ENVIRONMENT
    return read_json(path).get("state") if path.is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run folder."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} must be a JSON file, and cannot be read ({first_line(error)}).") from error
    if not isinstance(data, dict):
        raise RunError(f"{path} must hold a JSON object, got a {type(data).__name__}.")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Plain data, one field a line; NaN is not JSON and is refused: see `finite`."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Plain data with null for the numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def write_text(path: Path, text: str) -> None:
    """A whole text file or nothing."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; on leaving without an error, the file is flushed and becomes `path`.

    Raises:
        RunError: when the system refuses; what was at `path` before is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise RunError(f"{path} cannot be written ({reason}). Free the disk or name a folder that you own.") from error
    finally:
        if part.exists():
            part.unlink()


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that may follow."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
