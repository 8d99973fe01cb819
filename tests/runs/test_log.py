"""The log: one whole object a line, whatever was killed while it wrote."""

import json

import numpy as np
import pytest

from bptoolkit.continual import Moment
from bptoolkit.runs import RunError, load_log
from bptoolkit.runs.log import add_to_log, log


def moment(task=1, step=8, loss=0.5):
    return Moment(task, 3, step, 24, loss, float("nan"), np.array([[0.5, 0.25, 0.0], [1.0, 0.75, 0.0]]))


def test_what_a_watcher_is_told_stands_there(tmp_path):
    watcher = log(tmp_path)
    watcher.begin({"experiment": "tests.log"}, ["a/b/c"])
    watcher.progress("a/b/c", moment(0, 4))
    watcher.task("a/b/c", moment())
    watcher.end("finished")
    begin, progress, task, end = load_log(tmp_path)
    assert (begin["event"], begin["config"], begin["experiments"]) == ("begin", {"experiment": "tests.log"}, ["a/b/c"])
    assert {name: progress[name] for name in ("experiment", "task", "step", "steps", "loss", "unconverged")} == {
        "experiment": "a/b/c",
        "task": 0,
        "step": 4,
        "steps": 24,
        "loss": 0.5,
        "unconverged": None,
    }
    assert task["accuracy"] == [[0.5, 0.25, 0.0], [1.0, 0.75, 0.0]]
    assert (end["event"], end["state"]) == ("end", "finished")
    assert all("time" in line for line in (begin, progress, task, end))


def test_progress_is_told_once_a_second_at_most(tmp_path):
    watcher = log(tmp_path)
    for step in range(50):
        watcher.progress("a/b/c", moment(0, step))
    assert [line["step"] for line in load_log(tmp_path)] == [0]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), np.float64("nan")])
def test_what_json_does_not_know_is_null(tmp_path, loss):
    log(tmp_path).task("a/b/c", moment(loss=loss))
    (line,) = load_log(tmp_path)
    assert line["loss"] is None


def test_half_a_last_line_is_passed_over_and_cut_off_by_the_next(tmp_path):
    for number in range(3):
        add_to_log(tmp_path, "note", number=number)
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        assert [line["number"] for line in load_log(tmp_path)] == [0, 1]
        add_to_log(tmp_path, "note", number=9)
        assert [line["number"] for line in load_log(tmp_path)] == [0, 1, 9]


def test_a_log_is_only_added_to(tmp_path):
    add_to_log(tmp_path, "note", text="grüße")
    before = (tmp_path / "log.jsonl").read_bytes()
    assert json.loads(before)["text"] == "grüße"
    add_to_log(tmp_path, "note", text="two")
    assert (tmp_path / "log.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("content", [b"no json\n", b"[1]\n", b'{"a": 1}\n\n', b"\xff\n"])
def test_a_line_that_is_no_object_is_one_sentence(tmp_path, content):
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(RunError, match="must be a log with one JSON object a line"):
        load_log(tmp_path)


def test_no_log_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"log\.jsonl must be a log"):
        load_log(tmp_path)


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(RunError, match=r"log\.jsonl cannot be written"):
        add_to_log(tmp_path, "note")
