"""Several processes on one run, over loopback: the results of one, and a clear end when one of them is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bptoolkit import runs
from bptoolkit.runs.lifeline import GONE, GRACE, LOST, hold

# A run by as many processes and devices as it is told; with `wait` process 0 stays in its second task.
PROGRAM = """
import json, sys, time, jax, optax
from pathlib import Path
folder, devices, data, process, processes, port, wait = json.loads(sys.argv[1])
from bptoolkit.runs.devices import group_of, prepare
from bptoolkit.runs.lifeline import LOST
from bptoolkit.runs.processes import end, is_leader, lost
group = group_of(f"127.0.0.1:{port}", process, processes)
prepare(jax.config, devices, group)
from bptoolkit import continual as cl, data as sets, learning, models, runs

stream = cl.split(sets.gaussian_classes(jax.random.key(1), 4, 12, 5), classes_per_task=2)
experiment = cl.Experiment(
    stream, learning.backprop(models.mlp(5, 7, 4)), lambda hyper: optax.sgd(hyper["rate"]), 4, 8, hyper={"rate": 0.1},
    evaluate_every=2, probe=8,
)

def waiting(name, moment):
    if wait and moment.task == 1:
        Path(folder + ".waits").touch()
        while not Path(folder + ".goes-on").exists():
            time.sleep(0.05)

watcher = runs.unwatched()._replace(progress=waiting)
config = {"experiment": "tiny", "seeds": 4, "key": 0}
try:
    outcome = runs.carry_out(
        folder, config, {"static/naive/class": experiment}, layout=cl.Layout(data=data), watcher=watcher
    )
except runs.Interrupted as error:
    print(error, flush=True)
    end(error.exit_code)
except Exception as error:
    print("lost" if lost(error) else repr(error), flush=True)
    end(LOST)
print(json.dumps([is_leader(), outcome.results["accuracy"].values.tolist()]))
end(0)
"""
# Joins the others, and does not listen to them.
BUSY = """
import jax, json, sys, time
from bptoolkit.runs.devices import group_of, prepare
process, port = json.loads(sys.argv[1])
prepare(jax.config, 1, group_of(f"127.0.0.1:{port}", process, 2))
print("joined", flush=True)
time.sleep(300)
"""
TOO_LONG = 300  # seconds; a hang

pytestmark = pytest.mark.slow  # each starts several processes


@pytest.fixture(scope="module")
def start(compiled):
    """Starts a run of some processes; returns them, and how to wait for all."""

    def call(folder: Path, processes: int = 1, devices: int = 1, data: int = 1, wait: bool = False):
        folder.mkdir(exist_ok=True)
        port = free_port()
        lines = [[str(folder), devices, data, i, processes, port, wait] for i in range(processes)]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
        hashes = [environment | {"PYTHONHASHSEED": str(i)} for i, _ in enumerate(lines)]  # sets differ in their order
        return [python(PROGRAM, line, variables) for line, variables in zip(lines, hashes, strict=True)]

    return call


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def python(program: str, line: list, variables=None) -> subprocess.Popen:
    arguments = [sys.executable, "-c", program, json.dumps(line)]
    return subprocess.Popen(arguments, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(started):
    """(exit code, output, errors) of each."""
    told = [process.communicate(timeout=TOO_LONG) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, told, strict=True)]


def weights(folder: Path):
    (params,) = runs.load_params(folder).values()
    return np.concatenate([layer[name].ravel() for layer in params for name in ("w", "b")])


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """One process with two devices."""
    folder = tmp_path_factory.mktemp("alone")
    ((code, _, errors),) = ended(start(folder, devices=2))
    assert code == 0, errors
    return folder


@pytest.mark.parametrize(
    ("processes", "devices", "data", "atol"),
    [
        (2, 1, 1, 0.0),
        (2, 2, 2, 1e-6),
        (3, 1, 1, 1e-6),
    ],
    ids=["2 processes", "2 processes, rows split", "3 processes"],
)
def test_several_processes_find_what_one_finds(start, alone, tmp_path, processes, devices, data, atol):
    """With as many nets on a device, bit for bit; with fewer, or gradients summed over parts of rows, to rounding."""
    told = ended(start(tmp_path / "run", processes, devices, data))
    assert [code for code, *_ in told] == [0] * processes, told
    reports = [json.loads(output.splitlines()[-1]) for _, output, _ in told]
    assert [leads for leads, _ in reports] == [True] + [False] * (processes - 1)
    np.testing.assert_allclose(weights(tmp_path / "run"), weights(alone), rtol=0, atol=atol)
    expected = runs.load_results(alone)["accuracy"].values
    for _, accuracy in reports:
        np.testing.assert_array_equal(accuracy, expected)
    for name in ("within", "dormant", "effective_rank", "weight_norm"):
        one, many = (runs.load_results(folder)[name].values for folder in (alone, tmp_path / "run"))
        np.testing.assert_allclose(many, one, rtol=1e-4, err_msg=name)
    assert runs.load_results(tmp_path / "run")["accuracy"].values.tolist() == expected.tolist()


def in_second_task(start, folder):
    """Two processes: the leader in a hook, until the file `goes-on` is there, the other on its way to an exchange."""
    started = start(folder, processes=2, wait=True)
    deadline = time.monotonic() + TOO_LONG
    while not folder.with_suffix(".waits").exists():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started), ended(started)
        time.sleep(0.05)
    return started


@pytest.mark.parametrize("victim", [1, 0], ids=["a follower", "the leader"])
def test_a_killed_process_ends_the_run_and_it_goes_on(start, alone, tmp_path, victim):
    """No process hangs, none ends well; the same command then ends as if nothing had happened.

    The follower waits for the leader in an exchange; the leader stays in a hook, and comes when the follower has gone.
    """
    folder = tmp_path / "run"
    started = in_second_task(start, folder)
    started[victim].kill()
    started[victim].wait()
    folder.with_suffix(".goes-on").touch()
    began = time.monotonic()
    told = ended(started)
    assert told[victim][0] == -signal.SIGKILL
    code, output, errors = told[1 - victim]
    assert code == LOST, told
    assert "lost" in output or "of this run has gone" in errors
    assert "stack trace" not in errors
    assert time.monotonic() - began < 100
    assert list(folder.rglob("about.json"))  # the first task was saved

    told = ended(start(folder, processes=2))
    assert [code for code, *_ in told] == [0, 0], told
    np.testing.assert_array_equal(weights(folder), weights(alone))


def test_ctrl_c_in_one_process_ends_all_and_saves(start, tmp_path):
    folder = tmp_path / "run"
    started = in_second_task(start, folder)
    started[1].send_signal(signal.SIGINT)
    folder.with_suffix(".goes-on").touch()
    (code, output, _), (code_there, output_there, errors) = ended(started)
    assert (code, code_there) == (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "Interrupted by another process. static/naive/class is saved after 8 of 8 updates." in output
    assert "Interrupted by SIGINT. Process 0 saves." in output_there
    assert "Stopping after the updates under way, and saving" in errors


def test_a_process_whose_others_do_not_come_says_so():
    """JAX's runtime waits in C++, where no signal is heard, and would abort in the end."""
    impatient = "import bptoolkit.runs.devices as devices; devices.PATIENCE = 1\n" + BUSY
    ((code, output, errors),) = ended([python(impatient, [0, free_port()])])
    assert (code, output) == (LOST, "")
    assert "The 2 processes of this run have not all come within 1 s." in errors


def test_a_connection_that_ends_before_all_have_joined_is_tried_again():
    """Process 0 listens a moment before JAX does behind it; what comes in between is turned away."""
    with socket.create_server(("127.0.0.1", 0)) as early:
        port = early.getsockname()[1]
        follower = python(BUSY, [1, port])
        early.accept()[0].close()
    started = [python(BUSY, [0, port]), follower]
    try:
        assert all("joined\n" in (process.stdout or ()) for process in started)
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(("victim", "whose"), [(0, "Process 0"), (1, "Another process")], ids=["leader", "follower"])
def test_a_process_that_hears_nothing_ends_in_a_sentence_when_another_is_killed(victim, whose):
    """Far from any exchange, where JAX's runtime would abort it."""
    port = free_port()
    started = [python(BUSY, [i, port]) for i in range(2)]
    assert all("joined\n" in (process.stdout or ()) for process in started)  # Gloo talks before
    started[victim].kill()
    began = time.monotonic()
    code, _, errors = ended(started)[1 - victim]
    assert code == LOST
    assert errors.splitlines()[-1] == "Error: " + GONE.format(whose)
    assert "stack trace" not in errors
    assert time.monotonic() - began < GRACE + 10


def test_a_port_that_is_taken_is_refused_in_a_sentence():
    with socket.create_server(("", 0)) as taken, pytest.raises(ValueError, match="Name another in --coordinator"):
        hold(taken.getsockname()[1], 1.0)
