"""Several processes on one run: process 0 leads, reads and writes all files; the others compute what it computes.

    leader     tells which combination comes, and its state; then all make the same call of `run_grid`; tells the end
    follower   waits for what it is told

Between two stretches of training all agree on whether to save or to stop, so that an interruption of any of them ends
the run for all, at the same update.  Every function here is called by all processes, or by none; with one process all
of this does nothing.
"""

import os
import pickle
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.lanes import Grid
from bptoolkit.continual.layout import Layout, fetch
from bptoolkit.continual.run import run_grid
from bptoolkit.continual.walk import Moment, RunState
from bptoolkit.runs.interrupt import Interrupted, Interruption, interruptible
from bptoolkit.runs.record import RunError, first_line

__all__ = ["Verdict", "agree", "end", "fatal", "follow", "is_leader", "leading", "lost", "tell"]

LOST = ("Gloo", "NCCL", "coordination service", "heartbeat", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection")


class Verdict(IntEnum):
    """What comes after a stretch of training; the greatest that any process asks for."""

    GO_ON = 0
    SAVE = 1
    STOP = 2  # after saving


def is_leader() -> bool:
    """Whether this process has the files."""
    return jax.process_index() == 0


def agree(wish: Verdict) -> Verdict:
    """The greatest of all processes' wishes."""
    if jax.process_count() == 1:
        return wish
    return Verdict(int(np.max(process_allgather(np.int32(wish)))))


class Leading:
    """What process 0 tells the others, and whether they are listening."""

    listening = True

    @contextmanager
    def calls(self, name: str, grid: Grid, state: RunState | None) -> Iterator[None]:
        """Have the followers make the same call of `run_grid` meanwhile."""
        tell(("run", name, dict(grid), state))
        self.listening = False
        yield
        self.listening = True  # an error in between finds them in the middle of something, where they hear nothing

    def end(self, outcome: Any) -> None:
        """Let the followers go."""
        self.listening = False
        tell(("end", outcome))


@contextmanager
def leading() -> Iterator[Leading]:
    """Lead; an error that the followers do not meet themselves is told to them."""
    leader = Leading()
    try:
        yield leader
    except BaseException as error:
        if leader.listening:
            tell(("error", error.number if isinstance(error, Interrupted) else first_line(error)))
        raise


def follow(experiments: Mapping[str, Experiment], config: Mapping[str, Any], layout: Layout) -> Any:
    """Run what the leader runs, until it ends; return what it returns.

    Raises:
        Interrupted: when any process was asked to stop; the leader has saved.
        RunError: when the leader cannot go on.
    """
    key = jax.random.key(config["key"])
    with interruptible() as interruption:
        hooks = {"on_progress": following(interruption), "on_task": following(interruption, save=False)}
        while True:
            match tell(None):
                case "run", name, grid, state:
                    run_grid(experiments[name], grid, key, config["seeds"], state=state, layout=layout, **hooks)
                case "end", outcome:
                    return outcome
                case "error", int(number):
                    raise Interrupted(number, "What has finished is saved.")
                case "error", sentence:
                    raise RunError(sentence)


def following(interruption: Interruption, save: bool = True):
    """A hook of `run` that does what the leader's does, but for the files."""

    def hook(moment: Moment, state: RunState) -> None:
        verdict = agree(Verdict.STOP if interruption.asked else Verdict.GO_ON)
        if verdict is not Verdict.GO_ON and save:
            fetch(state.progress)
        if verdict is Verdict.STOP:
            interruption.stop("Process 0 saves.")

    return hook


def tell(value: Any) -> Any:
    """What process 0 says, in all."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(pickle.dumps(value), np.uint8) if is_leader() else np.zeros(0, np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(data))))
    return pickle.loads(bytes(broadcast_one_to_all(np.resize(data, size) if is_leader() else np.zeros(size, np.uint8))))


def lost(error: BaseException) -> bool:
    """Whether an error says that another process has gone."""
    return jax.distributed.is_initialized() and any(word in str(error) for word in LOST)


def fatal(error: BaseException) -> bool:
    """Whether an error of one cell ends a whole sweep: with several processes, any that they may not all have met."""
    return jax.distributed.is_initialized() and (lost(error) or not isinstance(error, ValueError))


def end(code: int, *, alone: bool = False) -> NoReturn:
    """Leave the process: with the others where all leave alike, else at once, as none waits for one that has gone.

    Args:
        alone: not with the others, whatever the code.
    """
    together = jax.distributed.is_initialized()
    if together and not alone and code in (0, 1, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        jax.distributed.shutdown()
    elif together:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
