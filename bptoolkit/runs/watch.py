"""Who looks on while a run goes on: a terminal, a log file, TensorBoard.  One small interface for all of them.

A watcher only sees; it can neither change a run nor stop it.  `together` makes one watcher of several, `guarded` one
that falls silent where it would have failed, and `per_combination` one that writes each combination to its own place.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bptoolkit.continual.walk import Moment

__all__ = ["Sink", "Watcher", "after_task", "guarded", "in_training", "per_combination", "together", "unwatched"]


class Watcher(NamedTuple):
    """What is called as a run goes on.  A combination is an experiment's name, "net/strategy/scenario".

    begin: once, with the run's configuration as plain data, and the combinations that are still to be run.
    progress: every few hundred updates of a combination.
    task: after every finished task of a combination.
    end: once, with "finished", "failed" or "interrupted".
    """

    begin: Callable[[Mapping[str, Any], Sequence[str]], None]
    progress: Callable[[str, Moment], None]
    task: Callable[[str, Moment], None]
    end: Callable[[str], None]


class Sink(NamedTuple):
    """Where the numbers of one combination go."""

    log: Callable[[Mapping[str, float], int], None]  # values by name, and the update at which they were so
    close: Callable[[str], None]  # with "finished", "failed" or "interrupted"


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


def guarded(watcher: Watcher, what: str) -> Watcher:
    """The watcher, silent from its first error on: one warning says so, and the run goes on.

    Args:
        what: what goes without the rest of the run, as the subject of a sentence: "TensorBoard".
    """
    failed = False

    def careful(field: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            nonlocal failed
            if failed:
                return
            try:
                getattr(watcher, field)(*arguments)
            except Exception as error:  # of any kind: a run is worth more than its display
                failed = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(f"{what} is told nothing more of this run, which goes on: {reason}", stacklevel=2)

        return call

    return Watcher(*map(careful, Watcher._fields))


def per_combination(open_sink: Callable[[Mapping[str, Any], str, int], Sink]) -> Watcher:
    """Give every combination its own sink.

    Args:
        open_sink: of the run's configuration, the combination, and the update at which it starts or goes on; called
            when the combination is first heard of.
    """
    sinks: dict[str, Sink] = {}
    config: dict[str, Any] = {}

    def log(name: str, moment: Moment, values: Mapping[str, float]) -> None:
        if name not in sinks:
            sinks[name] = open_sink(config, name, moment.step)
        sinks[name].log(values, moment.step)

    def task(name: str, moment: Moment) -> None:
        log(name, moment, after_task(moment))
        if moment.task == moment.tasks:
            sinks.pop(name).close("finished")

    def end(state: str) -> None:
        while sinks:
            sinks.popitem()[1].close(state)

    return Watcher(
        begin=lambda given, names: config.update(given),
        progress=lambda name, moment: log(name, moment, in_training(moment)),
        task=task,
        end=end,
    )


def in_training(moment: Moment) -> dict[str, float]:
    """Loss and, for a net that settles, the unconverged share, over the latest stretch."""
    settles = {} if math.isnan(moment.unconverged) else {"training/unconverged": moment.unconverged}
    return {"training/loss": moment.loss} | settles


def after_task(moment: Moment) -> dict[str, float]:
    """Test accuracies after a task, means over seeds: of each task so far, and of all of them."""
    learnt = moment.accuracy[:, : moment.task].mean(0)
    each = {f"accuracy/task_{i}": float(share) for i, share in enumerate(learnt, start=1)}
    return {"accuracy/mean": float(learnt.mean())} | each
