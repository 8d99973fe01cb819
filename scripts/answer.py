"""Answer whether one net does otherwise than another, from finished runs: paired differences, effect sizes, a figure.

python scripts/answer.py runs/static_vs_recurrent-… runs/static_vs_recurrent-…

Writes NAME.json (differences, results, cost, configurations, versions) and NAME.png to experiments/results/, NAME being
the experiment's.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from bptoolkit import runs
from bptoolkit.runs.environment import provenance
from bptoolkit.runs.figures import style
from bptoolkit.runs.figures.effects import effects
from bptoolkit.runs.flat import flat
from bptoolkit.runs.record import replacing, write_json

ROOT = Path(__file__).resolve().parent.parent


def main(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
    base: str = "static",
    out: Path = ROOT / "experiments" / "results",
) -> int:
    """The answer of these runs.

    Args:
        folders: run folders of one experiment.
        base: the net that all others are compared with.
        out: where the answer goes.
    """
    try:
        print("\n".join(map(str, answer(folders, base, out))))
        return 0
    except (ValueError, runs.RunError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def answer(folders: Sequence[Path], base: str, out: Path) -> tuple[Path, Path]:
    """Write both files."""
    if not folders:
        raise ValueError("An answer needs at least one run folder, got none.")
    configs = [runs.load_config(folder) for folder in folders]
    if len({config["experiment"] for config in configs}) > 1:
        told = ", ".join(config["experiment"] for config in configs)
        raise ValueError(f"The runs must be of one experiment, got {told}.")
    labels = named(configs)
    results = [runs.load_results(folder) for folder in folders]
    found = dict(zip(labels, runs.contrasts(results, base), strict=True))
    record = {
        name: {
            "config": config,
            "made": provenance(runs.load_environment(folder)),
            "summary": runs.load_summary(folder),
            "contrasts": found[name],
        }
        for name, config, folder in zip(labels, configs, folders, strict=True)
    }
    name = configs[0]["experiment"].rsplit(".", 1)[-1]
    numbers, picture = out / f"{name}.json", out / f"{name}.png"
    write_json(numbers, {"base": base, "runs": record})
    with style(), replacing(picture) as part:
        effects(found, base).savefig(part, format="png", dpi=130)
    return numbers, picture


def named(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Each run by those fields of its configuration in which the runs differ.

    Raises:
        ValueError: two runs that do not.
    """
    fields = [dict(flat(config["config"])) for config in configs]
    differing = [name for name in fields[0] if len({own.get(name) for own in fields}) > 1]
    labels = [", ".join(own[name] for name in differing) or own.get("dataset", "run") for own in fields]
    if len(set(labels)) < len(labels):
        raise ValueError("The runs must differ in a field of their configuration, got the same twice.")
    return labels


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
