"""Time one process with one device against two processes, and against one process with two devices; prints JSON.

    python scripts/bench_scale.py                          (some minutes on 2 cores, most of them compiling)

Each run trains the same nets: SEEDS of 64-100-10 on split digits, batch 32.  `seconds` are those of training and
evaluation alone, without compiling, as the runner counts them.  The speed-up of two processes is the seconds of one
over theirs, efficiency half of that: 1 where two cores do twice the work of one.  All ways take turns, and medians of
the ratios within a turn are reported: a machine may be shared, and the load is recorded.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bptoolkit import continual as cl
from bptoolkit import data, learning, models
from bptoolkit.runs.devices import group_of, prepare

WAYS = {"1 process": (1, 1), "1 process, 2 devices": (1, 2), "2 processes": (2, 1)}  # processes, devices of each


@dataclasses.dataclass(frozen=True)
class Options:
    """What to time."""

    steps: int = 2000  # per task
    seeds: int = 16
    repeats: int = 5
    worker: str | None = None  # how this script starts itself


def main(options: Options) -> None:
    if options.worker is not None:
        print(json.dumps(work(options, **json.loads(options.worker))))
        return
    before = os.getloadavg()
    turns = [{way: started(options, *how) for way, how in WAYS.items()} for _ in range(options.repeats)]
    figures = {way: figure(turns, way) for way in WAYS}
    report = {
        "load_before": before,
        "load_after": os.getloadavg(),
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        **{name: getattr(options, name) for name in ("steps", "seeds", "repeats")},
        "ways": figures,
        "same_accuracy": all(len({turn[way]["accuracy"] for way in WAYS}) == 1 for turn in turns),
        "ready_seconds": float(np.median([turn["2 processes"]["ready"] for turn in turns])),
    }
    print(json.dumps(report, indent=2))


def figure(turns: list[dict], way: str) -> dict:
    """Seconds of a way, and its speed-up over one process with one device, within each turn."""
    seconds = [turn[way]["seconds"] for turn in turns]
    ratios = [turn["1 process"]["seconds"] / turn[way]["seconds"] for turn in turns]
    workers = WAYS[way][0] * WAYS[way][1]
    return {
        "seconds": float(np.median(seconds)),
        "speed_up": float(np.median(ratios)),
        "efficiency": float(np.median(ratios)) / workers,
        "efficiency_range": [min(ratios) / workers, max(ratios) / workers],
    }


def started(options: Options, processes: int, devices: int) -> dict:
    """What process 0 tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = [{"process": i, "processes": processes, "devices": devices, "port": port} for i in range(processes)]
    flags = ["--steps", str(options.steps), "--seeds", str(options.seeds)]
    line = lambda one: [sys.executable, __file__, *flags, "--worker", json.dumps(one)]
    workers = [subprocess.Popen(line(one), stdout=subprocess.PIPE, text=True) for one in told]
    said = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise RuntimeError(f"A worker of {processes} has failed: {[worker.returncode for worker in workers]}.")
    return json.loads(said[0].splitlines()[-1])


def work(options: Options, process: int, processes: int, devices: int, port: int) -> dict:
    """One process's part of a run."""
    began = time.perf_counter()
    prepare(jax.config, devices, group_of(f"127.0.0.1:{port}", process, processes))
    ready = time.perf_counter() - began
    stream = cl.split(data.digits(), classes_per_task=2)
    learner = learning.backprop(models.mlp(64, 100, 10))
    experiment = cl.Experiment(stream, learner, optax.adam(1e-3), options.steps, 32)
    result = cl.run(experiment, jax.random.key(0), options.seeds)
    return {"seconds": result.cost.seconds, "ready": ready, "accuracy": float(result.accuracy.mean())}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
