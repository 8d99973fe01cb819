"""Run a study: one classic question, its measured answer, and a figure.

python scripts/study.py --list                all studies, with their question
python scripts/study.py parity                run one; writes parity.json and parity.png to experiments/results/
python scripts/study.py parity --help         all its flags
"""

import ast
import dataclasses
import difflib
import importlib
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import jax
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the studies lie beside this folder

from bptoolkit import runs
from bptoolkit.runs.devices import prepare
from bptoolkit.runs.environment import environment, provenance
from bptoolkit.runs.fields import check_fields
from bptoolkit.runs.figures import style
from bptoolkit.runs.record import finite, replacing, write_json

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "experiments" / "studies"


def main(arguments: list[str]) -> int:
    try:
        known = questions()
        if not arguments or arguments[0] in ("-h", "--help", "--list"):
            listing = "\n".join(f"{name:18} {question}" for name, question in known.items())
            print(listing if arguments == ["--list"] else f"{__doc__}\nStudies:\n{listing}")
            return 0
        study = load(arguments[0], known)
        config, out = parse(arguments[0], study, arguments[1:])
        prepare(jax.config, devices=1)
        for path in keep(arguments[0], study, config, out):
            print(path)
        return 0
    except (ValueError, FileNotFoundError, runs.RunError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def questions() -> dict[str, str]:
    """The QUESTION of every file of experiments/studies/ that asks one, read without running it."""
    found = {}
    for path in sorted(STUDIES.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "QUESTION":
                found[path.stem] = ast.literal_eval(node.value)
    return found


def load(name: str, known: dict[str, str]) -> ModuleType:
    """The module of a study."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)
        raise ValueError(f"There is no study {name!r}. Nearest: {', '.join(near)}. See --list.")
    return importlib.import_module(f"experiments.studies.{name}")


def parse(name: str, study: ModuleType, arguments: list[str]) -> tuple[Any, Path]:
    """The study's own fields, held to their ranges and to the study's `check` if it has one, and where results go."""
    flags = dataclasses.make_dataclass(
        "Flags",
        [
            ("config", Annotated[study.Config, tyro.conf.OmitArgPrefixes], dataclasses.field(default=study.Config())),
            ("out", Path, dataclasses.field(default=ROOT / "experiments" / "results")),
        ],
    )
    given = tyro.cli(flags, prog=f"study.py {name}", description=study.QUESTION, args=arguments)
    check_fields(given.config)
    if hasattr(study, "check"):
        study.check(given.config)
    return given.config, given.out


def ready(out: Path) -> Path:
    """The folder of the results, made and found to take files: before they are measured, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise runs.RunError(
            f"--out must be a folder for new files, {out} cannot be one ({error.strerror}). Name another."
        ) from error


def keep(name: str, study: ModuleType, config: Any, out: Path) -> tuple[Path, Path]:
    """Measure, and write figures of both kinds: numbers as JSON, null where one is not defined; the picture as PNG."""
    numbers, picture = (ready(out) / f"{name}.{kind}" for kind in ("json", "png"))
    around = environment({})
    began = time.perf_counter()
    results = finite(study.measure(config))
    seconds = round(time.perf_counter() - began, 1)
    record = {"study": name, "question": study.QUESTION, "config": dataclasses.asdict(config)}
    write_json(numbers, record | {"seconds": seconds, "made": provenance(around), "results": results})
    with style(), replacing(picture) as part:
        study.draw(results).savefig(part, format="png", dpi=150)
    return numbers, picture


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
