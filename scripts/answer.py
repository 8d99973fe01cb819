"""Answer whether one net does otherwise than another, from finished runs: paired differences, effect sizes, a figure.

python scripts/answer.py runs/static_vs_recurrent-… runs/static_vs_recurrent-… [--sweeps runs/sweep-… …]

Runs that differ in their strategies alone are parts of one; what several have is taken from the last that is named.
Writes NAME.json (differences, results, cost, configurations, versions; what the sweeps found at each point, by which
sizes and strengths were chosen) and NAME.png to experiments/results/, NAME being the experiment's.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from bptoolkit import runs
from bptoolkit.runs.contrasts import joined
from bptoolkit.runs.environment import provenance
from bptoolkit.runs.figures import style
from bptoolkit.runs.figures.effects import effects
from bptoolkit.runs.flat import flat
from bptoolkit.runs.record import read_json, replacing, write_json
from bptoolkit.runs.recorded import require_finished
from bptoolkit.runs.sweep import STATES, load_sweep, points

ROOT = Path(__file__).resolve().parent.parent
TWICE = "The runs must differ in a field of their configuration, got the same twice."


def main(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
    sweeps: tuple[Path, ...] = (),
    base: str = "static",
    out: Path = ROOT / "experiments" / "results",
) -> int:
    """The answer of these runs.

    Args:
        folders: run folders of one experiment, parts of a run in the order in which the last counts.
        sweeps: folders of sweeps over the same experiment.
        base: the net that all others are compared with.
        out: where the answer goes.
    """
    try:
        print("\n".join(map(str, answer(folders, sweeps, base, out))))
        return 0
    except (ValueError, runs.RunError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def answer(folders: Sequence[Path], sweeps: Sequence[Path], base: str, out: Path) -> tuple[Path, Path]:
    """Write both files."""
    if not folders:
        raise ValueError("An answer needs at least one run folder, got none.")
    configs = [runs.load_config(folder) for folder in folders]
    for folder in folders:
        require_finished(folder)
    tries = [tried(folder) for folder in sweeps]
    asked = [config["experiment"] for config in (*configs, *(one["config"] for one in tries))]
    if len(set(asked)) > 1:
        raise ValueError(f"Runs and sweeps must be of one experiment, got {', '.join(asked)}.")
    parts = grouped(configs)
    labels = named([configs[first] for first, *_ in parts])
    loaded = [runs.load_results(folder) for folder in folders]
    results = [joined([loaded[i] for i in own]) for own in parts]
    found = dict(zip(labels, runs.contrasts(results, base), strict=True))
    made = [{"config": c, "made": provenance(runs.load_environment(f))} for c, f in zip(configs, folders, strict=True)]
    record = {
        name: {"parts": [made[i] for i in own], "summary": runs.summarise(whole), "contrasts": found[name]}
        for name, own, whole in zip(labels, parts, results, strict=True)
    }
    name = configs[0]["experiment"].rsplit(".", 1)[-1]
    numbers, picture = out / f"{name}.json", out / f"{name}.png"
    if numbers.is_file() and "base" not in read_json(numbers):
        raise ValueError(f"{numbers} holds results of another kind, which would be lost. Name another folder: --out.")
    write_json(numbers, {"base": base, "runs": record, "sweeps": tries})
    with style(), replacing(picture) as part:
        effects(found, base).savefig(part, format="png", dpi=130)
    return numbers, picture


def tried(sweep: Path) -> dict[str, Any]:
    """What a sweep found at each point, null where a seed diverged: {over, config without its fields, made, points}."""
    results = load_sweep(sweep)
    states = read_json(sweep / STATES)
    cell = next(sweep / one["folder"] for one in states["cells"] if one["state"] == "finished")
    config = runs.load_config(cell)
    fixed = {name: value for name, value in config["config"].items() if name not in states["over"]}
    known = lambda number: None if math.isnan(number) else number
    found = [
        point._asdict() | {"mean": known(point.mean), "half_width": known(point.half_width)}
        for point in points(results)
    ]
    made = provenance(runs.load_environment(cell))
    return {"over": states["over"], "config": config | {"config": fixed}, "made": made, "points": found}


def grouped(configs: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Which runs are parts of one: those that differ in strategies, and in what was chosen for these, alone.

    A field that only one has, as an earlier version had none, makes no difference.

    Raises:
        ValueError: two with the same strategies.
    """
    groups: list[list[int]] = []
    for i, config in enumerate(configs):
        own = next((group for group in groups if alike(configs[group[0]], config)), None)
        if own is None:
            groups.append([i])
        elif any(configs[j]["config"].get("strategies") == config["config"].get("strategies") for j in own):
            raise ValueError(TWICE)
        else:
            own.append(i)
    return groups


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations differ in strategies and choice alone."""
    fields, others = one["config"], other["config"]
    shared = (fields.keys() & others.keys()) - {"strategies"}
    same = all(fields[name] == others[name] for name in shared)
    return same and all(one.get(name) == other.get(name) for name in ("experiment", "seeds", "key", "over", "validate"))


def named(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Each run by those fields of its configuration in which the runs differ.

    Raises:
        ValueError: two runs that do not.
    """
    fields = [dict(flat(config["config"])) for config in configs]
    differing = [name for name in fields[0] if len({own.get(name) for own in fields}) > 1]
    labels = [", ".join(own[name] for name in differing) or own.get("dataset", "run") for own in fields]
    if len(set(labels)) < len(labels):
        raise ValueError(TWICE)
    return labels


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
