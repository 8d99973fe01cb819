"""A report of one run, or a comparison of several: one page, its figures, and its tables for papers.

python scripts/report.py runs/NAME                   write runs/NAME/report.html anew
python scripts/report.py runs/A runs/B runs/C        compare B and C with A, seed by seed
"""

import hashlib
import sys
from pathlib import Path

import tyro

from bptoolkit import runs


def main(folders: tyro.conf.Positional[tuple[Path, ...]], to: Path | None = None) -> int:
    """Write a report.

    Args:
        folders: run folders.
        to: where a comparison goes; a folder beside the first run if left out.
    """
    try:
        page = write(folders, to)
    except (ValueError, runs.RunError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


def write(folders: tuple[Path, ...], to: Path | None) -> Path:
    """The page of one run, in its folder, or of several."""
    if len(folders) == 1:
        if to is not None:
            raise runs.RunError(f"--to is for comparisons; the report of one run goes to its own folder {folders[0]}.")
        return runs.write_report(folders[0])
    names = hashlib.sha256("\n".join(str(folder.resolve()) for folder in folders).encode()).hexdigest()[:8]
    beside = folders[0].resolve().parent / f"comparison-{names}" if folders else Path()
    return runs.write_comparison(folders, to or beside)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
