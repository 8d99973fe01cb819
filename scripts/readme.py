"""Write the README's tables from the committed results, or check that they are current.

python scripts/readme.py                          write the tables anew from experiments/results/
python scripts/readme.py --adopt runs/NAME        first commit a run's summary and figure as the results shown
python scripts/readme.py --check                  exit 1 where the README is stale
"""

import json
import re
import shutil
import sys
from pathlib import Path

import tyro

from bptoolkit import runs

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
README = ROOT / "README.md"
SECTION = r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)"
RECORDED = ("command", "started", "python", "machine", "devices", "source")


def main(adopt: Path | None = None, check: bool = False) -> int:
    """The README's tables.

    Args:
        adopt: a run folder whose summary and figure are to be shown.
        check: change nothing, fail where the README is stale.
    """
    if adopt is not None:
        keep(adopt)
    old = README.read_text("utf-8")
    new = re.sub(SECTION, section, old, flags=re.DOTALL)
    if not check:
        README.write_text(new, "utf-8")
    elif new != old:
        print("README.md does not show experiments/results/. Run: python scripts/readme.py", file=sys.stderr)
        return 1
    return 0


def section(found: re.Match) -> str:
    summary = json.loads((RESULTS / f"{found[2]}.json").read_text("utf-8"))
    return f"{found[1]}{runs.markdown_table(summary).strip()}\n{found[3]}"


def keep(folder: Path) -> None:
    """Copy what the README shows of a run, with where and how it was made."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    environment = json.loads((folder / "environment.json").read_text("utf-8"))
    name = config["experiment"].rsplit(".", 1)[-1]
    made = {field: environment[field] for field in RECORDED if field in environment}
    packages = {p: v for p, v in environment.get("packages", {}).items() if p in ("jax", "jaxlib", "optax", "flax")}
    record = runs.load_summary(folder) | {"config": config, "made": made | {"packages": packages}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    for picture in (folder / "figures").glob("*.png"):
        shutil.copy(picture, RESULTS / f"{name}-{picture.name}")


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
