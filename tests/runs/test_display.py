"""What the terminal shows of a run, against numbers worked out by hand."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from bptoolkit.continual.walk import Moment
from bptoolkit.runs.display import display
from bptoolkit.runs.pace import clock_time

TASKS, STEPS = 4, 400
NAMES = [f"{net}/{strategy}/class" for net in ("static", "recurrent") for strategy in ("naive", "ewc")]


class Clock:
    """Time that goes on only when told."""

    now = 1000.0

    def __call__(self):
        return self.now


def moment(task, step, unconverged=float("nan"), loss=0.5):
    return Moment(task, TASKS, step, STEPS, loss, unconverged, np.tile([0.8, 0.6, 0.1, 0.1], (3, 1)))


def run(watcher, clock, seconds=1.0, compiling=5.0, names=NAMES, unconverged=0.015):
    """Every combination compiles, then needs `seconds` for the 100 updates of a task."""
    watcher.begin({"experiment": "x"}, NAMES)
    for name in names:
        clock.now += compiling
        share = unconverged if name.startswith("recurrent") else float("nan")
        for task in range(TASKS):
            clock.now += seconds if task else 0.0
            watcher.progress(name, moment(task, 100 * task + 100, share))
            watcher.task(name, moment(task + 1, 100 * task + 100, share))


def shown(width=120, terminal=True, state="finished", **kind):
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    watcher = display(console, clock=clock)
    run(watcher, clock, **kind)
    watcher.end(state)
    return out.getvalue()


def last_screen(text):
    return text[text.rindex("combination  ") :]


def test_a_terminal_shows_every_number_of_every_combination():
    """400 updates, the first 100 of which lie before the first moment: 300 in 3 s. 5 s to compile and 3 s are 8."""
    screen = last_screen(shown())
    for name in NAMES:
        line = next(line for line in screen.splitlines() if name in line)
        unconverged = "1.5 %" if name.startswith("recurrent") else "–"
        wanted = [name, "4/4", "400/400", "0.500", "40.0 %", unconverged, "100", "0:08 taken"]
        assert re.split(r"\s{2,}", line.strip()) == wanted
    assert "4/4 combinations" in screen
    assert "0:00 left" in screen


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_narrow_terminal_loses_columns_and_no_letters(width):
    text = shown(width)
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", text).splitlines()) <= width
    assert "…" not in text
    assert ("steps/s" in text) == (width >= 100)


def test_elsewhere_a_combination_is_one_line_and_long_ones_a_line_each_ten_seconds():
    lines = shown(terminal=False).splitlines()
    assert [line.split("  ")[0] for line in lines if "taken" in line] == NAMES
    assert len(lines) == 1 + len(NAMES)  # the very first moment, and every end; 8 s lie between two ends
    assert lines[-1] == (
        "recurrent/ewc/class  task 4/4  step 400/400  loss 0.500  accuracy 40.0 %  unconverged 1.5 %  steps/s 100"
        "  time 0:08 taken"
    )
    slow = shown(terminal=False, seconds=25.0).splitlines()
    assert len(slow) == 1 + TASKS * len(NAMES)  # tasks 2, 3 and 4 are told with their first moment, and the end
    assert len(shown(terminal=False, seconds=0.01, compiling=0.0).splitlines()) == 1 + len(NAMES)
    assert "\x1b" not in "".join(slow)


def test_the_time_left_is_that_of_the_combination_and_of_those_to_come():
    """One of four ended after 8 s, the second at 100 of 400 updates a second: 3 s left, then twice (8 + 8)/2 s."""
    clock, out = Clock(), io.StringIO()
    watcher = display(Console(file=out, width=120, force_terminal=True, color_system=None), clock=clock)
    run(watcher, clock, names=NAMES[:1])
    clock.now += 5.0
    watcher.progress(NAMES[1], moment(0, 0))
    clock.now += 1.0
    watcher.progress(NAMES[1], moment(0, 100))
    watcher.end("interrupted")
    screen = last_screen(out.getvalue())
    assert re.search(r"static/ewc/class .* 0:03 left", screen)
    assert re.search(r"1/4 combinations .* 0:2[0-2] left", screen)


def test_before_anything_is_known_nothing_is_claimed():
    clock, out = Clock(), io.StringIO()
    watcher = display(Console(file=out, width=120, force_terminal=True, color_system=None), clock=clock)
    watcher.begin({}, NAMES)
    watcher.end("failed")
    assert "0/4 combinations" in out.getvalue()
    assert "compiling" in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_prints_nothing(terminal):
    clock, out = Clock(), io.StringIO()
    watcher = display(Console(file=out, force_terminal=terminal), quiet=True, clock=clock)
    run(watcher, clock)
    watcher.end("finished")
    assert out.getvalue() == ""


def test_a_terminal_that_is_closed_does_not_end_the_run():
    clock, out = Clock(), io.StringIO()
    watcher = display(Console(file=out, force_terminal=False), clock=clock)
    out.close()
    with pytest.warns(UserWarning, match="The display is told nothing more of this run, which goes on"):
        run(watcher, clock)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")])
def test_a_time_is_read_as_on_a_clock(seconds, text):
    assert clock_time(seconds) == text
