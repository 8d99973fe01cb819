"""What the writers have written, read back by TensorBoard, MLflow and W&B themselves."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bptoolkit.continual.walk import Moment
from bptoolkit.runs import RunError
from bptoolkit.runs.record import run_name
from bptoolkit.runs.writers import mlflow, tensorboard, wandb

CONFIG = {"experiment": "experiments.split_digits", "config": {"rate": 0.1, "hidden": [100]}, "seeds": 2}
NAMES = ["static/naive/class", "recurrent/ewc/class"]
STEPS = [100, 200, 300]


def moment(task, step, settles):
    accuracy = np.tile([0.9, 0.6, 0.3], (2, 1))
    return Moment(task, 3, step, 300, 1 / step, 0.01 * task if settles else float("nan"), accuracy)


def watch(watcher, steps=STEPS, names=NAMES, state="finished"):
    watcher.begin(CONFIG, names)
    for name in names:
        for step in steps:
            task = step // 100
            watcher.progress(name, moment(task - 1, step, name.startswith("recurrent")))
            watcher.task(name, moment(task, step, name.startswith("recurrent")))
    watcher.end(state)


# TensorBoard


@pytest.fixture(scope="module")
def reader():
    """The class with which TensorBoard reads a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return lambda folder: accumulator.EventAccumulator(str(folder)).Reload()


def curve(events, tag):
    return {event.step: event.value for event in events.Scalars(tag)}


def test_tensorboard_reads_every_number(tmp_path, reader):
    watch(tensorboard(tmp_path))
    for name in NAMES:
        events = reader(tmp_path / name)
        assert curve(events, "training/loss") == pytest.approx({step: 1 / step for step in STEPS})
        assert curve(events, "accuracy/mean") == pytest.approx({100: 0.9, 200: 0.75, 300: 0.6})
        assert curve(events, "accuracy/task_2") == pytest.approx({200: 0.6, 300: 0.6})
        settles = name.startswith("recurrent")
        assert ("training/unconverged" in events.Tags()["scalars"]) == settles


KILLED = """
import sys, time
sys.path.insert(0, {here!r})
import test_writers as t
watcher = t.tensorboard({folder!r})
watcher.begin(t.CONFIG, t.NAMES)
for step in t.STEPS[:2]:
    watcher.progress(t.NAMES[0], t.moment(0, step, False))
print("told", flush=True)
time.sleep(600)
"""


def test_what_a_killed_run_has_told_can_be_read(tmp_path, reader):
    """Nothing is kept back in a buffer; what was told after the last flush would be lost with SIGKILL."""
    script = KILLED.format(here=os.path.dirname(__file__), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "told"
        process.send_signal(signal.SIGKILL)
    assert set(curve(reader(tmp_path / NAMES[0]), "training/loss")) == {100, 200}


def test_a_file_that_was_cut_anywhere_can_be_read_up_to_there(tmp_path, reader):
    watch(tensorboard(tmp_path), names=NAMES[:1])
    (path,) = (tmp_path / NAMES[0]).iterdir()
    whole = path.read_bytes()
    read = []
    for length in range(len(whole) - 120, len(whole), 7):
        path.write_bytes(whole[:length])
        read.append(len(curve(reader(path.parent), "accuracy/task_1")))
    assert set(read) <= {2, 3}


def test_a_run_that_goes_on_from_an_earlier_update_has_one_curve(tmp_path, reader):
    watch(tensorboard(tmp_path), names=NAMES[:1], state="interrupted")
    first = next((tmp_path / NAMES[0]).iterdir())
    first.rename(first.with_name(f"{first.name}.old"))  # in this test both have one process and one second
    time.sleep(0.01)
    watch(tensorboard(tmp_path), steps=[200, 300], names=NAMES[:1])
    events = reader(tmp_path / NAMES[0]).Scalars("training/loss")
    assert [event.step for event in events] == STEPS


def test_a_folder_that_cannot_be_made_does_not_end_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="TensorBoard is told nothing more of this run, which goes on"):
        watch(tensorboard(tmp_path / "file"))


# MLflow


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder as MLflow's store, and a client that reads it."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    package = pytest.importorskip("mlflow")
    uri = (tmp_path / "store").as_uri()
    return uri, package.MlflowClient(uri)


def runs_of(client):
    experiment = client.get_experiment_by_name("split_digits")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_mlflow_reads_every_number_and_the_configuration(store):
    uri, client = store
    watch(mlflow(uri))
    found = runs_of(client)
    assert set(found) == set(NAMES)
    run = found["recurrent/ewc/class"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "experiment": "experiments.split_digits",
        "config.rate": "0.1",
        "config.hidden": "100",
        "seeds": "2",
    }
    assert run.data.tags["bptoolkit.run"] == run_name(CONFIG)
    history = client.get_metric_history(run.info.run_id, "training/loss")
    assert {metric.step: metric.value for metric in history} == {step: 1 / step for step in STEPS}
    assert run.data.metrics["accuracy/mean"] == pytest.approx(0.6)
    assert run.data.metrics["training/unconverged"] == pytest.approx(0.02)


def test_an_interrupted_run_goes_on_in_its_mlflow_run_and_a_finished_one_does_not(store):
    uri, client = store
    watch(mlflow(uri), steps=[100], names=NAMES[:1], state="interrupted")
    (before,) = runs_of(client).values()
    assert before.info.status == "KILLED"
    watch(mlflow(uri), steps=[200, 300], names=NAMES[:1])
    (after,) = runs_of(client).values()
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert [m.step for m in client.get_metric_history(after.info.run_id, "training/loss")] == STEPS
    watch(mlflow(uri), names=NAMES[:1])
    assert len(client.search_runs([after.info.experiment_id])) == 2


def test_a_server_that_is_gone_does_not_end_the_run(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(UserWarning, match="MLflow is told nothing more of this run, which goes on"):
        watch(mlflow("http://127.0.0.1:9"))


# Weights & Biases


def test_wandb_offline_keeps_every_run_in_the_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install bptoolkit[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    watch(wandb("tests", tmp_path))
    kept = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(kept) == len(NAMES)
    written = b"".join(path.read_bytes() for path in kept)
    assert all(text.encode() in written for text in (*NAMES, "training/loss", "accuracy/mean", run_name(CONFIG)))


# what is missing


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("tensorboardX", tensorboard),
        ("mlflow", lambda folder: mlflow(folder.as_uri())),
        ("wandb", lambda folder: wandb("tests", folder)),
    ],
)
def test_a_missing_package_is_one_sentence_that_says_what_to_do(package, make, tmp_path, monkeypatch):
    for loaded in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        RunError, match=rf"needs the package {package}, .* pip install bptoolkit\[{package.lower()[:11]}\]"
    ):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []
