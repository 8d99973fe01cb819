"""Kill a run at random moments, start it again, and see that it ends as one that was never killed, bit for bit.

python scripts/check_resume.py --kills 20

Each start is the same `scripts/run.py` command in a new process.  Half the kills (SIGKILL) come at any moment from the
start of the process on, half after its first line in the log.  A run that has ended in spite of them is compared, and
another begun in another folder, until there were enough kills.
"""

import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the experiments lie beside this folder

from bptoolkit import runs
from bptoolkit.runs.fields import Count, check_fields

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Options:
    """What is killed, and how often."""

    kills: Count = 20
    steps: Count = 400  # updates a task
    save_every: Count = 100  # updates between two checkpoints
    strategies: tuple[str, ...] = ("naive", "replay")  # of the static net
    seeds: Count = 2
    draw: int = 0  # of the moments


class Failed(Exception):
    """A run did not end, or ended otherwise."""


def main(options: Options) -> int:
    try:
        check_fields(options)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    draw, kills = random.Random(options.draw), 0
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        try:
            began = time.monotonic()
            ended(start(options, top / "whole"))
            seconds = (time.monotonic() - began) * 0.7  # the others find their programs compiled
            while kills < options.kills:
                folder = top / f"after{kills}"
                made = killed(options, folder, draw, seconds, options.kills - kills)
                if found := runs.differences(run_in(top / "whole"), run_in(folder)):
                    raise Failed(f"A run that was killed {made} times differs:\n" + "\n".join(found))
                print(f"Killed {made} times: bit-identical.", flush=True)
                kills += made
        except Failed as error:
            print(error, file=sys.stderr)
            return 1
    print(f"{kills} kills, all runs bit-identical.")
    return 0


def killed(options: Options, folder: Path, draw: random.Random, seconds: float, most: int) -> int:
    """Start a run again and again until it ends; how often it was killed."""
    for kills in range(most):
        process = start(options, folder)
        if draw.random() < 0.5:
            time.sleep(seconds * draw.random())
        else:
            wait_for_line(folder, process)
            time.sleep(seconds * draw.random() / 2)
        process.kill()
        if ended(process) == 0:
            return kills
    ended(start(options, folder))
    return most


def start(options: Options, folder: Path) -> subprocess.Popen:
    """The command."""
    line = [sys.executable, str(ROOT / "scripts" / "run.py"), "split_digits", "--quiet", "--runs", str(folder)]
    line += ["--nets", "static", "--strategies", *options.strategies, "--steps", str(options.steps)]
    line += ["--seeds", str(options.seeds), "--save-every", str(options.save_every)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen) -> int:
    """The process's exit code: 0, or that of a kill."""
    output, _ = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise Failed(f"A run ended with {process.returncode}:\n{output}")
    return process.returncode


def wait_for_line(folder: Path, process: subprocess.Popen) -> None:
    """Until the process has written to the log, or has ended."""
    length = lambda: sum(path.stat().st_size for path in folder.glob("*/log.jsonl"))
    before = length()
    while length() == before and process.poll() is None:
        time.sleep(0.02)


def run_in(folder: Path) -> Path:
    """The one run folder in it."""
    (found,) = folder.iterdir()
    return found


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
