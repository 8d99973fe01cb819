"""A run as it goes on, in the terminal: a live table, or, where there is no terminal, a line now and then.

Shown of each combination: tasks, updates, loss, test accuracy over the tasks so far, share of settlings that did not
converge, updates a second, time left.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bptoolkit.continual.walk import Moment
from bptoolkit.runs.pace import Pace, clock_time, gone_on
from bptoolkit.runs.watch import Watcher, guarded, unwatched

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

__all__ = ["display"]

EVERY = 10.0  # seconds between two plain lines, at least
ENDED_SHOWN = 12  # combinations that have ended, in the live table; the rest are counted
WIDE, SPARED = 100, ("step", "steps/s")  # columns of a terminal, and what is left out where it is narrower
Row = tuple[str, Moment, Pace]


def display(console: "Console", *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> Watcher:
    """Show a run on this console: live on a terminal, a line now and then elsewhere, nothing where `quiet`."""
    if quiet:
        return unwatched()
    board = _Board(clock)
    return guarded((_live if console.is_terminal else _lines)(console, board), "The display")


class _Board:
    """What has been told of a run so far."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.began = self.since = clock()
        self.total = 0
        self.ended: list[Row] = []
        self.now: Row | None = None

    def begin(self, config: Mapping[str, Any], names: Sequence[str]) -> None:
        self.total = len(names)
        self.began = self.since = self.clock()

    def progress(self, name: str, moment: Moment) -> Row:
        known = self.now[2] if self.now is not None and self.now[0] == name else None
        self.now = name, moment, gone_on(known, moment, self.since, self.clock())
        return self.now

    def task(self, name: str, moment: Moment) -> Row:
        row = self.progress(name, moment)
        if moment.task == moment.tasks:
            self.ended.append(row)
            self.now, self.since = None, self.clock()
        return row

    @property
    def left(self) -> float | None:
        """Seconds until the end: the rest of this combination, and the mean of those that ended for each to come."""
        here = self.now[2].left if self.now is not None else 0.0
        spent = [pace.spent for _, _, pace in self.ended]
        if self.now is not None and here is not None:
            spent.append(self.now[2].spent + here)
        to_come = self.total - len(self.ended) - (self.now is not None)
        if here is None or (to_come > 0 and not spent):
            return None
        return here + to_come * (sum(spent) / len(spent) if spent else 0.0)


def _live(console: "Console", board: _Board) -> Watcher:
    """A table that is drawn anew four times a second, and stays when the run has ended."""
    from rich.live import Live

    shown = Live(console=console, get_renderable=lambda: _screen(board, console.width), refresh_per_second=4)

    def begin(config: Mapping[str, Any], names: Sequence[str]) -> None:
        board.begin(config, names)
        shown.start()

    return Watcher(begin, _unheard(board.progress), _unheard(board.task), lambda state: shown.stop())


def _lines(console: "Console", board: _Board) -> Watcher:
    """A line when a combination has ended, and in between one each `EVERY` seconds at most."""
    last = -math.inf

    def say(row: Row) -> None:
        nonlocal last
        name, moment, _ = row
        if moment.task == moment.tasks or board.clock() - last >= EVERY:
            last = board.clock()
            told = "  ".join(f"{what} {value}" for what, value in _cells(row).items() if value[0] != "–")
            console.print(f"{name}  {told}", soft_wrap=True, highlight=False, markup=False)

    return Watcher(
        board.begin,
        lambda name, moment: say(board.progress(name, moment)),
        lambda name, moment: say(board.task(name, moment)),
        lambda state: None,
    )


def _unheard(call: Callable[[str, Moment], Row]) -> Callable[[str, Moment], None]:
    """The call without its result."""
    return lambda name, moment: call(name, moment) and None


def _cells(row: Row) -> dict[str, str]:
    """What is shown of a combination; a dash where there is nothing (yet)."""
    _, moment, pace = row
    ended = moment.task == moment.tasks
    learnt = moment.accuracy[:, : moment.task]
    return {
        "task": f"{moment.task}/{moment.tasks}",
        "step": f"{min(moment.step, moment.steps):,}/{moment.steps:,}",
        "loss": f"{moment.loss:.3f}",
        "accuracy": f"{100 * learnt.mean():.1f} %" if moment.task else "–",
        "unconverged": "–" if math.isnan(moment.unconverged) else f"{100 * moment.unconverged:.1f} %",
        "steps/s": "–" if pace.rate is None else f"{pace.rate:,.0f}",
        "time": f"{clock_time(pace.spent)} taken" if ended else f"{clock_time(pace.left)} left",
    }


def _screen(board: _Board, width: int) -> "Group":
    """The table, and a line on the whole run."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    share = len(board.ended) + (board.now[1].step / board.now[1].steps if board.now is not None else 0.0)
    whole = Table.grid(padding=(0, 2))
    for _ in range(4):
        whole.add_column(overflow="fold")
    whole.add_row(
        f"{len(board.ended)}/{board.total} combinations",
        ProgressBar(total=max(board.total, 1), completed=share, width=24),
        f"{clock_time(board.clock() - board.began)} gone",
        "compiling" if board.now is None and len(board.ended) < board.total else f"{clock_time(board.left)} left",
    )
    return Group(_table(board, width), whole)


def _table(board: _Board, width: int) -> "Table":
    """One row for each combination: those that ended last, and the one on its way."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    rows = [*board.ended[-ENDED_SHOWN:], *([board.now] if board.now is not None else [])]
    titles = [what for what in (_cells(rows[0]) if rows else ()) if width >= WIDE or what not in SPARED]
    table.add_column("combination", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", overflow="fold")
    for row in rows:
        cells = _cells(row)
        looks = {"unconverged": "bold red" if row[1].unconverged > 0 else ""}
        shown = (Text(cells[title], style=looks.get(title, "")) for title in titles)
        table.add_row(Text(row[0]), *shown, style="dim" if row[1].task == row[1].tasks else "")
    return table
