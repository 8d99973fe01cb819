"""A run is carried out once: broken off anywhere, and started again, it ends as if it never had been."""

import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning, models, runs
from bptoolkit.continual.layout import Layout
from bptoolkit.runs import RunError, Watcher, carry_out, differences, unwatched
from bptoolkit.runs.checkpoint import save_state
from bptoolkit.runs.lock import locked

CONFIG = {"experiment": "tests.tiny", "config": {"steps": 6}, "seeds": 2, "key": 0}


def tiny(steps=6, rate=0.1) -> dict[str, cl.Experiment]:
    clouds = data.gaussian_classes(jax.random.key(1), 4, 12, 3, spread=0.7, test_rows=8)
    stream = cl.split(clouds, 2)
    learner = learning.backprop(models.mlp(3, 4, 4))
    both = {"naive": cl.naive(learner), "replay": cl.replay(2)(learner)}
    return {
        f"static/{name}/class": cl.Experiment(stream, one, optax.sgd(rate, 0.9), steps=steps, batch=4)
        for name, one in both.items()
    }


TINY = tiny()
NAMES = list(TINY)


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """The programs of each of these experiments are kept from test to test; a run in a process of its own has none."""
    module, kept = importlib.import_module("bptoolkit.continual.run"), {}
    make = module.Programs

    def programs(experiment, *rest):
        key = id(experiment), *rest[:2]  # the rest: updates a call, layout, nets
        if key not in kept:
            kept[key] = experiment, make(experiment, *rest)
        return kept[key][1]

    module.Programs = programs
    yield
    module.Programs = make


class Killed(BaseException):
    """Breaks a run off without its saving anything, as a kill would."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was never broken off."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert not carry_out(folder, CONFIG, TINY, question="Why?").found
    return folder


def at(call, act):
    """A watcher that acts at its nth call: two tasks of one stretch and one end of task each, for two combinations."""
    calls = iter(range(10**6))
    act_at = lambda name, moment: act() if next(calls) == call else None
    return unwatched()._replace(progress=act_at, task=act_at)


def stop():
    raise Killed


def broken_off(folder, call, act=stop):
    with pytest.raises(Killed):
        carry_out(folder, CONFIG, TINY, watcher=at(call, act), save_every=1)
    return folder


def begun(told):
    """A watcher that notes what is still to be run."""
    return unwatched()._replace(begin=lambda config, names: told.extend(names))


def state(folder):
    return json.loads((folder / "environment.json").read_text())["state"]


def checkpoints(folder):
    return sorted((folder / "unfinished").rglob("0*/about.json"))


# what is kept


def test_a_run_leaves_its_record_results_weights_and_log(whole):
    assert {path.name for path in whole.iterdir() if path.name != ".lock"} == {
        *("config.json", "environment.json", "log.jsonl", "params", "results.nc", "summary.json"),
    }
    results = runs.load_results(whole)
    assert results["accuracy"].shape == (1, 2, 1, 2, 3, 2)
    assert results.attrs["question"] == "Why?"
    assert results.attrs["chance"] == 0.25
    assert results["finite"].values.all()
    events = [line["event"] for line in runs.load_log(whole)]
    assert (events[0], events[-1]) == ("begin", "end")
    assert events.count("task") == 4
    assert state(whole) == "finished"


def test_results_and_weights_are_those_of_the_runner(whole):
    results, weights = runs.load_results(whole), runs.load_params(whole)
    assert list(weights) == NAMES
    for name, experiment in TINY.items():
        direct = cl.run(experiment, jax.random.key(0), seeds=2)
        net, strategy, scenario = name.split("/")
        found = results["accuracy"].sel(net=net, strategy=strategy, scenario=scenario)
        np.testing.assert_array_equal(found.values[:, 1:], direct.accuracy)
        jax.tree.map(np.testing.assert_array_equal, weights[name], direct.params)


def test_weights_load_in_another_process_without_what_made_them(whole):
    script = f"from bptoolkit import runs; print(runs.load_params({str(whole)!r})['static/naive/class'][0]['w'].sum())"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert float(printed) == runs.load_params(whole)["static/naive/class"][0]["w"].sum()


def test_the_same_run_is_found_and_not_repeated(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    outcome = carry_out(whole, CONFIG, TINY)
    assert outcome.found
    assert outcome.results.identical(runs.load_results(whole))
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_again_repeats_it_bit_for_bit(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    assert not carry_out(folder, CONFIG, TINY, again=True).found
    assert differences(whole, folder) == []


def test_a_seed_that_diverges_is_recorded(tmp_path):
    config = CONFIG | {"config": {"rate": 1e200}}
    carry_out(tmp_path / "run", config, tiny(rate=1e200))
    assert (runs.load_results(tmp_path / "run")["finite"] == 0).all()
    assert {line["loss"] for line in runs.load_log(tmp_path / "run") if line["event"] == "task"} == {None}


# taken up


@pytest.mark.parametrize("call", [0, 1, 2, 4, 7])
def test_a_run_broken_off_anywhere_ends_the_same(whole, tmp_path, call):
    """Call 0 is before the first save, 4 when the first combination has finished, 7 after the last update of all."""
    folder, left = broken_off(tmp_path / "run", call), []
    assert state(folder) == "failed"
    assert not (folder / "results.nc").exists()
    carry_out(folder, CONFIG, TINY, watcher=begun(left))
    assert differences(whole, folder) == []
    assert left == (NAMES if call < 4 else NAMES[1:])
    assert not (folder / "unfinished").exists()
    assert [start["state"] for start in json.loads((folder / "environment.json").read_text())["earlier"]] == [
        "failed"
    ] * (call > 0)


def test_nothing_is_lost_beyond_the_last_save(tmp_path, monkeypatch):
    """Two updates a call, saved every four: broken off after 2, 6 and 8 updates, a run goes on from 0, 4 and 6."""
    monkeypatch.setattr(importlib.import_module("bptoolkit.continual.walk"), "CHUNK", 2)
    one, ends = {NAMES[0]: TINY[NAMES[0]]}, []
    for call, saved in ((0, 0), (2, 4), (4, 6)):  # calls 0, 1, 2: 2, 4, 6 updates; 3: end of task; 4: 8 updates
        folder, told = tmp_path / f"run{call}", []
        with pytest.raises(Killed):
            carry_out(folder, CONFIG, one, watcher=at(call, stop), save_every=4)
        noted = unwatched()._replace(progress=lambda name, moment, told=told: told.append(moment.step))
        carry_out(folder, CONFIG, one, watcher=noted)
        assert told == list(range(saved + 2, 13, 2))
        ends.append(folder)
    assert differences(ends[0], ends[1]) == differences(ends[0], ends[2]) == []


def test_other_devices_than_before_are_told(whole, tmp_path, monkeypatch):
    """What began on two goes on on the one there is; the results are the same here, where one device did it all."""
    layout = Layout(2, stacked=True)
    save = lambda folder, state, about: save_state(folder, state._replace(layout=layout), about)
    with monkeypatch.context() as patch:
        patch.setattr("bptoolkit.runs.session.save_state", save)
        folder, said = broken_off(tmp_path / "run", 2), []
    record = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(record | {"devices": ["cpu:0 cpu", "cpu:1 cpu"]}))
    carry_out(folder, CONFIG, TINY, say=said.append)
    assert len(said) == 1
    assert "began on cpu:0 cpu, cpu:1 cpu and goes on on cpu:0 cpu: its results are the same to rounding" in said[0]
    assert differences(whole, folder) == []


def test_again_does_not_go_on_with_what_was_begun(tmp_path):
    folder, left = broken_off(tmp_path / "run", 4), []
    carry_out(folder, CONFIG, TINY, watcher=begun(left), again=True)
    assert left == NAMES


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_so(whole, tmp_path, number, capfd):
    former, folder = signal.getsignal(number), tmp_path / "run"
    watcher = at(2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(
        runs.Interrupted, match=rf"{number.name}\. static/naive/class is saved after 12 of 12 up"
    ) as told:
        carry_out(folder, CONFIG, TINY, watcher=watcher, save_every=10**9)
    assert told.value.exit_code == 128 + number
    assert "Once more stops at once" in capfd.readouterr().err
    assert signal.getsignal(number) is former
    assert state(folder) == "interrupted"
    assert len(checkpoints(folder)) == 2
    carry_out(folder, CONFIG, TINY)
    assert differences(whole, folder) == []


def test_a_second_signal_stops_at_once(tmp_path):
    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="Interrupted twice, by SIGINT"):
        carry_out(tmp_path / "run", CONFIG, TINY, watcher=at(0, twice))
    assert checkpoints(tmp_path / "run") == []


def test_outside_the_main_thread_signals_are_left_alone(whole):
    told = []
    thread = threading.Thread(target=lambda: told.append(carry_out(whole, CONFIG, TINY)))
    thread.start()
    thread.join()
    assert told[0].found


# what cannot be used


def damage(path):
    """Cut short the largest file of a checkpoint."""
    largest = max((p for p in path.parent.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


@pytest.mark.parametrize("damaged", [1, 2], ids=["the newest", "both"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(whole, tmp_path, damaged):
    folder, said = broken_off(tmp_path / "run", 3), []
    there = checkpoints(folder)
    assert len(there) == 2
    for path in there[-damaged:]:
        damage(path)
    carry_out(folder, CONFIG, TINY, say=said.append)
    assert differences(whole, folder) == []
    endings = ["the one before it is taken.", "the combination starts anew."]
    assert [sentence.rpartition(": ")[2] for sentence in said] == endings[:damaged]
    assert [line["text"] for line in runs.load_log(folder) if line["event"] == "note"] == said


def test_damaged_results_of_a_combination_are_made_again(whole, tmp_path):
    folder, said = broken_off(tmp_path / "run", 4), []
    part = folder / "unfinished" / "static" / "naive" / "class.nc"
    part.write_bytes(part.read_bytes()[:-100])
    carry_out(folder, CONFIG, TINY, say=said.append)
    assert differences(whole, folder) == []
    assert len(said) == 1
    assert "static/naive/class starts anew" in said[0]


@pytest.mark.parametrize("call", [2, 4], ids=["a checkpoint", "a finished combination"])
def test_what_other_software_left_is_refused_and_kept(tmp_path, monkeypatch, call):
    folder = broken_off(tmp_path / "run", call)
    before = sorted((folder / "unfinished").rglob("*"))
    monkeypatch.setattr("bptoolkit.runs.session.software", lambda: {"jax": "0.1"})
    with pytest.raises(RunError, match=r"other software or another run \(software.*Go back .*--again"):
        carry_out(folder, CONFIG, TINY)
    assert sorted((folder / "unfinished").rglob("*")) == before


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    source, folder = broken_off(tmp_path / "one", 2), tmp_path / "other"
    other = CONFIG | {"config": {"steps": 7}}
    runs.open_run(folder, other)
    shutil.copytree(source / "unfinished", folder / "unfinished")
    with pytest.raises(RunError, match=r"configuration\.config\.steps is 6 there, 7 asked for"):
        carry_out(folder, other, tiny(7))


def test_a_full_disk_stops_the_run_with_a_sentence_and_costs_nothing_that_was_saved(whole, tmp_path):
    """No file may grow beyond 64 bytes, from the first task on: what writes checkpoints sees real failures."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    watcher = at(2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard)))
    try:
        with pytest.raises(RunError, match=r"cannot be written .* Free the disk"):
            carry_out(tmp_path / "run", CONFIG, TINY, watcher=watcher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (checkpoint,) = checkpoints(tmp_path / "run")
    assert checkpoint.parent.name == "000001"
    said = []
    carry_out(tmp_path / "run", CONFIG, TINY, say=said.append)
    assert said == []
    assert differences(whole, tmp_path / "run") == []


# one process


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"), pytest.raises(RunError, match=rf"in use by process {os.getpid()} on .* wait for it"):
        carry_out(tmp_path / "run", CONFIG, TINY)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_the_lock_of_a_killed_process_holds_nothing(tmp_path):
    script = (
        "import pathlib, sys, time\nfrom bptoolkit.runs.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"in use by process {holder.pid}"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


# bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [("key", None), ("key", -1), ("key", 2**32), ("key", True), ("seeds", None), ("seeds", "2"), ("seeds", [1.5])],
)
def test_a_configuration_without_key_or_seeds_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        carry_out(tmp_path / "run", CONFIG | {name: value}, TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["static/naive", "a/b/c/d", "a//c", "../naive/class", "a/b/.c"])
def test_a_name_that_is_no_place_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must be named"):
        carry_out(tmp_path / "run", CONFIG, dict.fromkeys([name], TINY[NAMES[0]]))
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_that_cannot_run_leaves_nothing(tmp_path):
    experiment = TINY[NAMES[0]]
    wrong = cl.Experiment(experiment.stream, learning.backprop(models.mlp(3, 4, 2)), optax.sgd(0.1), steps=1)
    with pytest.raises(ValueError, match="needs a model with 4 outputs"):
        carry_out(tmp_path / "run", CONFIG, {NAMES[0]: wrong})
    assert list(tmp_path.iterdir()) == []


def test_more_devices_than_there_are_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="no more than the 1 that there are; got 1 × 3"):
        carry_out(tmp_path / "run", CONFIG, TINY, layout=cl.Layout(data=3))
    assert list(tmp_path.iterdir()) == []


def test_a_watcher_sees_begin_and_end(tmp_path):
    told = []
    watcher = Watcher(
        begin=lambda config, names: told.append(("begin", config["experiment"], tuple(names))),
        progress=lambda name, moment: told.append(("progress", name, moment.step)),
        task=lambda name, moment: told.append(("task", name, moment.task)),
        end=lambda state: told.append(("end", state)),
    )
    carry_out(tmp_path / "run", CONFIG, dict([*TINY.items()][:1]), watcher=watcher)
    assert told == [
        ("begin", "tests.tiny", (NAMES[0],)),
        *[("progress", NAMES[0], 6), ("task", NAMES[0], 1), ("progress", NAMES[0], 12), ("task", NAMES[0], 2)],
        ("end", "finished"),
    ]
