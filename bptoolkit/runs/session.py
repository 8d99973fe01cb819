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
from bptoolkit.continual.lanes import Grid, seed_numbers
from bptoolkit.continual.layout import Layout, choose_layout, fetch
from bptoolkit.continual.programs import numbers_read
from bptoolkit.continual.run import run_grid
from bptoolkit.continual.streams import Stream
from bptoolkit.continual.walk import Moment, RunState
from bptoolkit.runs.checkpoint import load_state, require_same, save_state
from bptoolkit.runs.collect import merged, of_grid
from bptoolkit.runs.environment import software
from bptoolkit.runs.interrupt import Interruption, interruptible
from bptoolkit.runs.lock import locked
from bptoolkit.runs.log import add_to_log, log
from bptoolkit.runs.memory import check_memory, enough_memory
from bptoolkit.runs.processes import Leading, Verdict, agree, follow, is_leader, leading
from bptoolkit.runs.record import (
    AXES,
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
    grid: Grid | None = None,
    layout: Layout = Layout(),
    question: str = "",
    watcher: Watcher | None = None,
    again: bool = False,
    save_every: int | None = None,
    say: Callable[[str], None] = tell,
) -> Outcome:
    """Run all experiments, one after the other, and keep what comes out; take up a run that was broken off.

    A run taken up again ends bit-identical to one that was never broken off.  Of several processes (`jax.distributed`)
    all make the same call and are returned the same; only process 0 needs the files and tells the watcher.

    Args:
        folder: the run's own, usually `Path("runs") / run_name(config)`.
        config: plain data that decides the results: "experiment", "config", "seeds" (how many, or which), "key".
        experiments: by "net/strategy/scenario"; what `config` defines.
        grid: numbers of the experiments' `hyper` and the values of each: results have an axis for each, and neither
            summary nor weights are kept.
        layout: how nets lie on devices; what is left out is chosen.
        question: one line, kept with the results.
        watcher: sees where the run is; log.jsonl is always written.
        again: start anew, whatever the folder holds of this run.
        save_every: updates between two checkpoints within a task, rounded up to those of one call; once a minute
            if left out.  After every task there is one in any case.
        say: is told, in a sentence, of what could not be used.

    Raises:
        RunError: a folder of something else, or in use; what cannot be written; a checkpoint of other software; no
            memory left.
        Interrupted: on Ctrl-C or SIGTERM, after saving.
        ValueError: an experiment that cannot run; then nothing is written.
    """
    folder, config = Path(folder), plain(config)
    _check_request(config, experiments)
    for name, experiment in experiments.items():
        _check_name(name)
        experiment.check()
    counts = {name: experiment.stream.tasks for name, experiment in experiments.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"All experiments of a run need the same number of tasks, got {counts}. Make a run of each.")
    seeds = len(seed_numbers(config["seeds"]))
    choose_layout(seeds, len(jax.devices()), weights=1, settles=False, wish=layout)  # raises for too few devices
    check_memory(experiments, seeds)
    if not is_leader():
        with enough_memory():
            return follow(experiments, config, layout)
    with leading() as leader:
        how = _How(leader, grid or {}, layout, save_every, say)
        outcome = _lead(folder, config, experiments, how, question, watcher or unwatched(), again)
        leader.end(outcome)
    return outcome


class _How(NamedTuple):
    """What all combinations of a run have in common."""

    leader: Leading
    grid: Grid
    layout: Layout
    save_every: int | None
    say: Callable[[str], None]


def _lead(folder: Path, config, experiments, how: _How, question: str, watcher: Watcher, again: bool) -> Outcome:
    """What the process with the files does."""
    claim(folder, config)
    if is_finished(folder) and not again:
        return Outcome(folder, load_results(folder), found=True)
    with locked(folder):
        if open_run(folder, config, again=again, data_devices=how.layout.data).found:  # by another process, meanwhile
            return Outcome(folder, load_results(folder), found=True)
        watched = together(log(folder), watcher)

        def note(sentence: str) -> None:
            add_to_log(folder, "note", text=sentence)
            how.say(sentence)

        with closing(folder, watched), enough_memory(), interruptible() as interruption:
            if moved := other_devices(folder):
                note(moved)
            about = {"configuration": config, "software": software()}
            every = [
                _Combination(folder, name, experiment, about, watched, interruption, how._replace(say=note))
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

    def __init__(self, folder: Path, name, experiment, about, watcher, interruption: Interruption, how: _How):
        self.name, self.experiment, self.about = name, experiment, about | {"combination": name}
        self.watcher, self.interruption = watcher, interruption
        self.leader, self.grid, self.layout, self.save_every, self.say = how
        self.place, self.weights = folder / UNFINISHED / name, folder / PARAMS / f"{name}.npz"
        self.part = self.place.with_name(self.place.name + ".nc")
        self.saved, self.saved_at = 0, time.monotonic()

    def finish(self, key, seeds) -> None:
        """Run what is left of it; keep results and weights."""
        state, said = load_state(self.place, self.about)
        for sentence in said:
            self.say(sentence)
        read = numbers_read(self.experiment) if self.grid else set()
        own = {name: values for name, values in self.grid.items() if name in read}
        hooks = {"on_progress": self.progress, "on_task": self.task}
        with self.leader.calls(self.name, own, state):
            results = run_grid(self.experiment, own, key, seeds, state=state, layout=self.layout, **hooks)
        if not self.grid:
            save_weights(self.weights, results[()].params)
        save_dataset(self.part, of_grid(results, own, self.grid).assign_attrs(about=json.dumps(self.about)))
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
        return bool(self.grid) or self.weights.is_file()

    def progress(self, moment: Moment, state: RunState) -> None:
        """Hook of `run`."""
        self.watcher.progress(self.name, moment)
        wish = Verdict.STOP if self.interruption.asked else Verdict.SAVE if self._due(moment) else Verdict.GO_ON
        verdict = agree(wish)
        if verdict is not Verdict.GO_ON:
            self.save(moment, state._replace(progress=fetch(state.progress)))
        self.stop(verdict, moment)

    def task(self, moment: Moment, state: RunState) -> None:
        """Hook of `run`."""
        self.watcher.task(self.name, moment)
        self.save(moment, state)
        self.stop(agree(Verdict.STOP if self.interruption.asked else Verdict.GO_ON), moment)

    def stop(self, verdict: Verdict, moment: Moment) -> None:
        """Raise if this process, or another one of the run, was asked to."""
        if verdict is Verdict.STOP:
            self.interruption.stop(f"{self.name} is saved after {moment.step} of {moment.steps} updates.")

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
    if set(results["accuracy"].dims) == set(AXES):  # a grid has no summary
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
