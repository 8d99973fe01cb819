"""Carry out the experiments of one run folder: find what is done, take up what was begun, save what comes out.

`carry_out` is all that a script, a sweep or a test needs.  A combination is one experiment, "net/strategy/scenario".
While a run goes on, its folder holds unfinished/: results and weights of each finished combination, and checkpoints
of the one under way.  When all are done they become results.nc and params/, and unfinished/ is removed.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.lanes import seed_numbers
from bptoolkit.continual.run import Moment, RunState, run
from bptoolkit.continual.streams import Stream
from bptoolkit.runs.checkpoint import load_state, require_same, save_state
from bptoolkit.runs.collect import cell, merged
from bptoolkit.runs.environment import software
from bptoolkit.runs.interrupt import Interruption, interruptible
from bptoolkit.runs.lock import locked
from bptoolkit.runs.log import add_to_log, log
from bptoolkit.runs.record import (
    UNFINISHED,
    RunError,
    claim,
    finish,
    first_line,
    is_finished,
    load_dataset,
    load_results,
    open_run,
    other_devices,
    plain,
    save_dataset,
    save_results,
)
from bptoolkit.runs.summary import save_summary
from bptoolkit.runs.watch import Watcher, together, unwatched
from bptoolkit.runs.weights import PARAMS, save_weights

if TYPE_CHECKING:
    import xarray

__all__ = ["Outcome", "carry_out"]

PAUSE = 60.0  # seconds between two checkpoints within a task, where no number of updates is stated


class Outcome(NamedTuple):
    """What a run folder holds now."""

    folder: Path
    results: "xarray.Dataset"
    found: bool  # it was there already, and nothing was run


def tell(sentence: str) -> None:
    """To the error output, so that a table on the output stays a table."""
    print(sentence, file=sys.stderr)


def carry_out(
    folder: Path | str,
    config: Mapping[str, Any],
    experiments: Mapping[str, Experiment],
    *,
    question: str = "",
    watcher: Watcher | None = None,
    again: bool = False,
    save_every: int | None = None,
    say: Callable[[str], None] = tell,
) -> Outcome:
    """Run all experiments, one after the other, and keep what comes out; take up a run that was broken off.

    A run taken up again ends bit-identical to one that was never broken off.

    Args:
        folder: the run's own, usually `Path("runs") / run_name(config)`.
        config: plain data that decides the results: "experiment", "config", "seeds" (how many, or which), "key".
        experiments: by "net/strategy/scenario"; what `config` defines.
        question: one line, kept with the results.
        watcher: sees where the run is; log.jsonl is always written.
        again: start anew, whatever the folder holds of this run.
        save_every: updates between two checkpoints within a task, rounded up to those of one call; once a minute
            if left out.  After every task there is one in any case.
        say: is told, in a sentence, of what could not be used.

    Raises:
        RunError: a folder of something else, or in use; what cannot be written; a checkpoint of other software.
        Interrupted: on Ctrl-C or SIGTERM, after saving.
        ValueError: an experiment that cannot run; then nothing is written.
    """
    folder, config = Path(folder), plain(config)
    _check_request(config, experiments)
    for name, experiment in experiments.items():
        _check_name(name)
        experiment.check()
    claim(folder, config)
    if is_finished(folder) and not again:
        return Outcome(folder, load_results(folder), found=True)
    with locked(folder):
        if open_run(folder, config, again=again).found:  # by another process, meanwhile
            return Outcome(folder, load_results(folder), found=True)
        watched = together(log(folder), watcher or unwatched())

        def note(sentence: str) -> None:
            add_to_log(folder, "note", text=sentence)
            say(sentence)

        with closing(folder, watched), interruptible() as interruption:
            if moved := other_devices(folder):
                note(moved)
            about = {"configuration": config, "software": software()}
            every = [
                _Combination(folder, name, experiment, about, watched, interruption, save_every, note)
                for name, experiment in experiments.items()
            ]
            left = [one for one in every if not one.is_finished()]
            watched.begin(config, [one.name for one in left])
            for one in left:
                interruption.check("What has finished is saved.")
                one.finish(jax.random.key(config["key"]), config["seeds"])
            results = _gathered(folder, experiments, question)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return Outcome(folder, results, found=False)


class _Combination:
    """One experiment of a run: its place on the disk, and when its state is saved."""

    def __init__(self, folder: Path, name, experiment, about, watcher, interruption: Interruption, save_every, say):
        self.name, self.experiment, self.about = name, experiment, about | {"combination": name}
        self.watcher, self.interruption, self.save_every, self.say = watcher, interruption, save_every, say
        self.place, self.weights = folder / UNFINISHED / name, folder / PARAMS / f"{name}.npz"
        self.part = self.place.with_name(self.place.name + ".nc")
        self.saved, self.saved_at = 0, time.monotonic()

    def finish(self, key, seeds) -> None:
        """Run what is left of it; keep results and weights."""
        state, said = load_state(self.place, self.about)
        for sentence in said:
            self.say(sentence)
        result = run(self.experiment, key, seeds, state=state, on_progress=self.progress, on_task=self.task)
        save_weights(self.weights, result.params)
        save_dataset(self.part, cell(result).assign_attrs(about=json.dumps(self.about)))
        shutil.rmtree(self.place, ignore_errors=True)

    def is_finished(self) -> bool:
        """Whether results and weights are there, and whole; those of other software are refused."""
        if not self.part.is_file():
            return False
        try:
            data = load_dataset(self.part)
            about = json.loads(data.attrs["about"])
        except (RunError, KeyError, TypeError, ValueError) as error:
            self.say(f"{self.part} is damaged ({first_line(error)}): {self.name} starts anew.")
            return False
        require_same(self.part, about, self.about)
        return self.weights.is_file()

    def progress(self, moment: Moment, state: RunState) -> None:
        """Hook of `run`."""
        self.watcher.progress(self.name, moment)
        if self.interruption.number is not None or self._due(moment):
            self.save(moment, state)
        self.interruption.check(f"{self.name} is saved after {moment.step} of {moment.steps} updates.")

    def task(self, moment: Moment, state: RunState) -> None:
        """Hook of `run`."""
        self.watcher.task(self.name, moment)
        self.save(moment, state)
        self.interruption.check(f"{self.name} is saved after {moment.step} of {moment.steps} updates.")

    def save(self, moment: Moment, state: RunState) -> None:
        save_state(self.place, state, self.about)
        self.saved, self.saved_at = moment.step, time.monotonic()

    def _due(self, moment: Moment) -> bool:
        if self.save_every is None:
            return time.monotonic() - self.saved_at >= PAUSE
        return moment.step - self.saved >= self.save_every


def _gathered(folder: Path, experiments: Mapping[str, Experiment], question: str) -> "xarray.Dataset":
    """The results of all combinations as one, saved with their summary."""
    parts = {name: load_dataset(folder / UNFINISHED / f"{name}.nc") for name in experiments}
    for part in parts.values():
        del part.attrs["about"]
    chance = {name.split("/")[2]: _chance(experiment.stream) for name, experiment in experiments.items()}
    results = merged(parts, question, chance)
    save_results(folder, results)
    save_summary(folder, results)
    return results


def _chance(stream: Stream) -> float:
    """Accuracy of guessing among the outputs in play."""
    return 1 / (stream.classes_per_task if stream.scenario == "task" else stream.outputs)


def _check_request(config: Mapping[str, Any], experiments: Mapping[str, Experiment]) -> None:
    """Raise unless there is something to run, seeds to run it with, and a key."""
    if not experiments:
        raise ValueError("A run needs at least one experiment, got none. Name a net, a strategy and a scenario.")
    if missing := {"seeds", "key"} - set(config):
        raise ValueError(f"A run's configuration must give seeds and key, got no {' and no '.join(sorted(missing))}.")
    seed_numbers(config["seeds"])
    key = config["key"]
    if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < 2**32:
        raise ValueError(f"key must be a whole number from 0 below 2³², got {key!r}.")


def _check_name(name: str) -> None:
    """Raise unless the name has three parts that can be folders."""
    labels = name.split("/")
    if len(labels) != 3 or any(not label or label.startswith(".") or "\0" in label for label in labels):
        raise ValueError(f'An experiment must be named "net/strategy/scenario", got {name!r}.')


@contextmanager
def closing(folder: Path, watcher: Watcher) -> Iterator[None]:
    """Record how the run ended, whatever happens, and tell the watcher; a first error is not hidden by a second."""
    try:
        yield
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(RunError):
            finish(folder, state, first_line(error))
        with suppress(Exception):
            watcher.end(state)
        raise
    finish(folder, "finished")
    watcher.end("finished")
