"""Write the tables of README and docs from the committed results, or check that they are current.

python scripts/readme.py                          write all tables anew from experiments/results/
python scripts/readme.py --adopt runs/NAME        first commit a run's summary and figures as the results shown
python scripts/readme.py --check                  exit 1 where a page is stale

A table stands between `<!-- results: NAME -->` and `<!-- end of results -->`, on a line each; NAME.json is made into it
by `committed_tables.TABLES`.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import tyro
from committed_tables import TABLES

from bptoolkit import runs
from bptoolkit.runs.environment import provenance
from bptoolkit.runs.record import read_json, replacing, write_text
from bptoolkit.runs.recorded import require_finished

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
OPENS, ENDS = "<!-- results:", "<!-- end of results -->"
SECTION = rf"({OPENS} ([\w-]+) -->\n).*?({ENDS})"


def main(adopt: Path | None = None, check: bool = False) -> int:
    """The tables of README and docs.

    Args:
        adopt: a run folder whose summary and figures are to be shown.
        check: change nothing, fail where a page is stale.
    """
    try:
        if adopt is not None:
            if check:
                raise ValueError("--check changes nothing and --adopt does, got both. Give one of them.")
            keep(adopt)
        stale = [page for page in pages() if refresh(page, check)]
    except (ValueError, runs.RunError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    for page in stale if check else []:
        print(
            f"{page.relative_to(ROOT)} does not show experiments/results/. Run: python scripts/readme.py",
            file=sys.stderr,
        )
    return int(check and bool(stale))


def pages() -> list[Path]:
    """README.md, and every page under docs/ that has a table of results."""
    docs = (page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts)
    return [ROOT / "README.md", *(page for page in docs if OPENS in page.read_text("utf-8"))]


def refresh(page: Path, check: bool) -> bool:
    """Whether the page was stale; unless `check`, it no longer is."""
    old = page.read_text("utf-8")
    new, made = re.subn(SECTION, section, old, flags=re.DOTALL)
    if not made == old.count(OPENS) == old.count(ENDS):
        raise ValueError(
            f"Each '{OPENS} NAME -->' of {page.relative_to(ROOT)} must have its '{ENDS}', got {old.count(OPENS)} and "
            f"{old.count(ENDS)}, {made} of them in pairs."
        )
    if new != old and not check:
        write_text(page, new)
    return new != old


def section(found: re.Match) -> str:
    """A table with its two lines of marking."""
    path = RESULTS / f"{found[2]}.json"
    if found[2] not in TABLES or not path.is_file():
        raise ValueError(
            f"Results must be in {RESULTS.relative_to(ROOT)}/ and one of {', '.join(TABLES)}, got {found[2]!r}."
        )
    return f"{found[1]}{TABLES[found[2]](json.loads(path.read_text('utf-8'))).strip()}\n{found[3]}"


def keep(folder: Path) -> None:
    """Copy what the pages show of a run, with where and how it was made."""
    config, environment = runs.load_config(folder), runs.load_environment(folder)
    require_finished(folder)
    name = config["experiment"].rsplit(".", 1)[-1]
    record = runs.load_summary(folder) | {"config": config, "made": provenance(environment)}
    kept = RESULTS / f"{name}.json"
    made_otherwise = TABLES.get(name, runs.markdown_table) is not runs.markdown_table
    if made_otherwise or (kept.is_file() and "rows" not in read_json(kept)):
        raise ValueError(
            f"{name}.json must hold the summary of one run, or be new; it holds results of another kind, which would "
            "be lost. Use the script that writes them (scripts/README.md)."
        )
    write_text(kept, json.dumps(record, indent=1) + "\n")
    shown = "".join(page.read_text("utf-8") for page in pages())
    for picture in (folder / "figures").glob("*.png"):
        if (copy := f"{name}-{picture.name}") in shown:
            with replacing(RESULTS / copy) as part:
                shutil.copyfile(picture, part)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
