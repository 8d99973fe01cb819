"""Who looks on while a run goes on: a terminal, a log file, TensorBoard.  One small interface for all of them.

A watcher only sees; it can neither change a run nor stop it.  `together` makes one watcher of several.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bptoolkit.continual.run import Moment

__all__ = ["Watcher", "together", "unwatched"]


class Watcher(NamedTuple):
    """What is called as a run goes on.  A combination is an experiment's name, "net/strategy/scenario".

    begin: once, with the run's configuration as plain data, and its combinations.
    progress: every few hundred updates of a combination.
    task: after every finished task of a combination.
    end: once, with "finished", "failed" or "interrupted".
    """

    begin: Callable[[Mapping[str, Any], Sequence[str]], None]
    progress: Callable[[str, Moment], None]
    task: Callable[[str, Moment], None]
    end: Callable[[str], None]


def unwatched() -> Watcher:
    """Looks away."""
    return Watcher(lambda config, names: None, lambda name, moment: None, lambda name, moment: None, lambda state: None)


def together(*watchers: Watcher) -> Watcher:
    """All of them, in this order."""

    def each(field: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            for watcher in watchers:
                getattr(watcher, field)(*arguments)

        return call

    return Watcher(*map(each, Watcher._fields))
