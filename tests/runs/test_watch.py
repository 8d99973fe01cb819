"""Watchers are called in order, and none of them can hold up a run or end it."""

import threading
import time
import warnings

import numpy as np
import pytest

from bptoolkit.continual.walk import Moment
from bptoolkit.runs.background import in_background
from bptoolkit.runs.watch import (
    Sink,
    Watcher,
    after_task,
    guarded,
    in_training,
    per_combination,
    together,
    unwatched,
)

CONFIG = {"experiment": "experiments.split_digits", "config": {"rate": 0.1}, "seeds": 2}
ACCURACY = np.array([[0.9, 0.5, 0.0], [0.7, 0.7, 0.0]])


def moment(task=2, step=50, loss=0.25, unconverged=0.02, tasks=3):
    return Moment(task, tasks, step, 100, loss, unconverged, ACCURACY)


def watch(watcher, names=("a/b/c",), state="finished"):
    """A whole small run as a watcher sees it."""
    watcher.begin(CONFIG, names)
    for name in names:
        watcher.progress(name, moment(step=50))
        watcher.task(name, moment(task=3, step=100))
    watcher.end(state)


def recorder(heard):
    return Watcher(*(lambda *given, field=field: heard.append((field, *given)) for field in Watcher._fields))


def failing(error, at="progress"):
    def fail(*_):
        raise error

    return unwatched()._replace(**{at: fail})


def test_all_are_called_one_after_the_other():
    first, second = [], []
    watch(together(recorder(first), unwatched(), recorder(second)))
    assert [call[0] for call in first] == ["begin", "progress", "task", "end"]
    assert first == second


@pytest.mark.parametrize("at", Watcher._fields)
def test_a_watcher_that_fails_warns_once_and_is_silent_from_then_on(at):
    """The others hear everything; without the guard its error would end the run."""
    heard, own = [], []
    broken = together(recorder(own), failing(OSError(28, "No space left on device"), at))
    with pytest.warns(UserWarning, match="The log is told nothing more .* No space left on device") as warned:
        watch(together(guarded(broken, "The log"), recorder(heard)), names=("a/b/c", "d/e/f"))
    assert len(warned) == 1
    assert len(heard) == 6
    assert [call[0] for call in own] == [call[0] for call in heard][: 1 + [call[0] for call in heard].index(at)]
    with pytest.raises(OSError, match="No space"):
        watch(broken)


def test_an_interruption_passes_the_guard():
    with pytest.raises(KeyboardInterrupt):
        watch(guarded(failing(KeyboardInterrupt()), "The log"))


def test_the_numbers_of_a_moment():
    """By hand: task 1 (0.9 + 0.7)/2, task 2 (0.5 + 0.7)/2, their mean 0.7; the task to come is not counted."""
    assert in_training(moment()) == {"training/loss": 0.25, "training/unconverged": 0.02}
    assert in_training(moment(unconverged=float("nan"))) == {"training/loss": 0.25}
    assert after_task(moment(task=2)) == {
        "accuracy/mean": pytest.approx(0.7),
        "accuracy/task_1": pytest.approx(0.8),
        "accuracy/task_2": pytest.approx(0.6),
    }


def test_each_combination_has_a_sink_that_is_closed_with_it():
    calls = []

    def open_sink(config, name, step):
        calls.append(("open", config["seeds"], name, step))
        return Sink(
            lambda values, step: calls.append((name, step, "training/loss" in values)),
            lambda state: calls.append(("close", name, state)),
        )

    watcher = per_combination(open_sink)
    watch(watcher, ("a", "b"))
    assert calls == [
        *(("open", 2, "a", 50), ("a", 50, True), ("a", 100, False), ("close", "a", "finished")),
        *(("open", 2, "b", 50), ("b", 50, True), ("b", 100, False), ("close", "b", "finished")),
    ]
    calls.clear()
    watcher.progress("a", moment())
    watcher.end("interrupted")
    assert calls[-1] == ("close", "a", "interrupted")


def test_in_the_background_nothing_is_lost_and_the_order_is_kept():
    there, here = [], []
    watch(together(in_background(recorder(there), "A server"), recorder(here)), names=tuple("abcdef"))
    assert there == here


def test_a_server_that_does_not_answer_holds_nothing_up():
    """Its thread waits for ever; the run is told so after the patience, and not before its end."""
    answer = threading.Event()
    stuck = unwatched()._replace(progress=lambda name, moment: answer.wait() and None)
    watcher = in_background(stuck, "A server", patience=0.05)
    began = time.perf_counter()
    with pytest.warns(UserWarning, match=r"A server has not answered for 0\.05 s"):
        watch(watcher)
    assert time.perf_counter() - began < 5
    answer.set()


def test_a_run_that_ends_before_it_begins_waits_for_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_background(unwatched(), "A server").end("failed")
