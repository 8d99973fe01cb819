"""Time the runner against the bare matrix products of the same shapes, in one run; prints JSON.

    python scripts/bench_forgetting.py                        (some minutes on 2 cores, most of them compiling)
    python scripts/bench_forgetting.py --steps 2000           the whole protocol of van de Ven et al. (2022)
    python scripts/bench_forgetting.py --steps 2000 --parts grid torch --out bench.json      some parts anew

split_mnist   784-400-400-10, batch 128, Adam, 5 tasks, class-incremental: seconds per seed, steps per second, and the
              ratio to the eight products of each step.  Evaluation is included, and weighs less the more steps.
              Without the images, random pixels of the same shapes are used.
small         64-100-10, batch 32: microseconds per step and seed for 1, 10 and 50 seeds, by layout.
settling      the same for 57 rate units, 10 seeds.
strategies    seconds of EWC (exact Fisher information of all rows and labels) and replay over those of plain training.
grid          seven strengths of EWC × --grid-seeds in one program, over the products of so many nets.
growth        seconds at 1, 2 and 4 times the steps, seeds and tasks.
torch         784-100-100-10, batch 10: microseconds an update and seed, and those of a plain PyTorch loop where PyTorch
              is installed (pip install torch).
imports       seconds to import bptoolkit, over those of `import jax, optax, flax`; fresh processes, in turn.
memory        peak resident memory of the process after 20 seeds of the MNIST net, one copy of the images on a device.

A machine may be shared: products and training take turns, and the load is recorded.  `memory` is right only where it
is the first part of its process.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import jax
import numpy as np
import optax
import tyro
from forgetting_costs import bare_products, grid, growth, seconds, small_against_torch, strategies

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bptoolkit import continual as cl
from bptoolkit import data, learning, models
from bptoolkit import fixed_point as fp
from bptoolkit.data import as_pixels, gaussian_classes
from bptoolkit.runs.devices import prepare
from bptoolkit.runs.environment import environment, provenance
from bptoolkit.types import Dataset

Part = Literal["memory", "imports", "split_mnist", "small", "settling", "strategies", "grid", "growth", "torch"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to time."""

    steps: int = 200  # per task, of the MNIST net
    repeats: int = 3  # of the MNIST net; the median is reported
    devices: int | None = None  # CPU devices; one per core if left out
    small_steps: int = 500  # per task, of the small nets, which are timed once
    grid_seeds: int = 1  # of the grid; 5 are 35 nets, and take a quarter of an hour at --steps 2000
    parts: tuple[Part, ...] = get_args(Part)  # all if left out
    out: Path | None = None  # JSON, kept up to date after each part; what it holds of other parts stays


def main(options: Options) -> None:
    prepare(jax.config, options.devices)
    images, source = mnist()
    measure: dict[Part, Callable[[], dict | list]] = {
        "memory": lambda: memory(images),
        "imports": imports,
        "split_mnist": lambda: {"data": source} | split_mnist(images, options),
        "small": lambda: small(options),
        "settling": lambda: settling(options),
        "strategies": lambda: strategies(images, options.steps, options.repeats),
        "grid": lambda: grid(images, options.steps, options.grid_seeds, products_of_one(options.steps)),
        "growth": lambda: growth(images, options.steps),
        "torch": lambda: small_against_torch(images, options.steps),
    }
    report = json.loads(options.out.read_text("utf-8")) if options.out is not None and options.out.exists() else {}
    made = provenance(environment({}), ("torch",))
    for name in options.parts:
        before = os.getloadavg()
        report[name] = {"measured": measure[name](), "made": made, "load": [before, os.getloadavg()]}
        print(name, file=sys.stderr)
        if options.out is not None:
            options.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    if options.out is None:
        print(json.dumps(report, indent=2))


def split_mnist(images: Dataset, options: Options) -> dict:
    sizes, batch = (784, 400, 400, 10), 128
    stream = cl.split(images, classes_per_task=2)
    experiment = cl.Experiment(stream, learning.backprop(models.mlp(*sizes)), optax.adam(1e-3), options.steps, batch)
    products = bare_products(sizes, batch, options.steps * stream.tasks)
    costs, bare = [], []
    for _ in range(options.repeats):
        bare.append(seconds(products))
        costs.append(cl.run(experiment, jax.random.key(0), seeds=1).cost)
    train = [cost.seconds for cost in costs]
    updates = options.steps * stream.tasks
    return {
        "updates": updates,
        "seconds_per_seed": float(np.median(train)),
        "steps_per_second": updates / float(np.median(train)),
        "products_seconds": float(np.median(bare)),
        "ratio": float(np.median(np.array(train) / np.array(bare))),
        "peak_bytes": costs[0].peak_bytes,
        "layout": costs[0].layout,
    }


def memory(images: Dataset) -> dict:
    """Comes first: the peak is that of the whole process so far."""
    stream = cl.split(images, classes_per_task=2)
    experiment = cl.Experiment(stream, learning.backprop(models.mlp(784, 400, 400, 10)), optax.adam(1e-3), 5)
    result = cl.run(experiment, jax.random.key(0), seeds=20)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seeds": 20, "peak_resident_mib": round(kib / 1024), "layout": result.cost.layout}


def imports(repeats: int = 5) -> dict:
    ours = "from bptoolkit import continual, data, fixed_point, learning, models"
    theirs = "import jax, optax, flax"
    start = lambda code: seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))
    pairs = [(start(ours), start(theirs)) for _ in range(repeats)]
    return {
        "seconds": float(np.median([a for a, _ in pairs])),
        "ratio": float(np.median([a / b for a, b in pairs])),
    }


def products_of_one(steps: int):
    """Seconds of the bare products of one net over five tasks."""
    products = bare_products((784, 400, 400, 10), 128, 5 * steps)
    return lambda: float(np.median([seconds(products) for _ in range(3)]))


def small(options: Options) -> list[dict]:
    return [
        timed(models.mlp(64, 100, 10), seeds, layout, options) for seeds in (1, 10, 50) for layout in layouts(seeds)
    ]


def settling(options: Options) -> list[dict]:
    stop = fp.Stop(rtol=1e-3, max_steps=60)
    relax = fp.implicit(fp.picard(), fp.almeida_pineda(stop=stop), stop)
    model = models.equilibrium(models.rate_cell(64, 57, 10, activation=models.activations.sigmoid), relax)
    return [timed(model, 10, layout, options) for layout in layouts(10)]


def layouts(seeds: int) -> list[cl.Layout]:
    """On one device, and on all; stacked or in turn."""
    counts = sorted({1, min(seeds, len(jax.devices()))})
    return [cl.Layout(devices, stacked) for devices in counts for stacked in (True, False)]


def timed(model, seeds: int, layout: cl.Layout, options: Options) -> dict:
    stream = cl.split(data.digits(), classes_per_task=2)
    experiment = cl.Experiment(stream, learning.backprop(model), optax.adam(1e-3), options.small_steps, 32)
    cost = cl.run(experiment, jax.random.key(0), seeds, layout=layout).cost
    chosen = cl.choose_layout(seeds, len(jax.devices()), cost.parameters, model.cell is not None)
    micro = cost.seconds * 1e6 / (cost.steps * seeds)
    return {
        "seeds": seeds,
        "layout": str(layout),
        "microseconds_per_step_and_seed": round(micro, 2),
        "compile_seconds": round(cost.compile_seconds, 2),
        "runner_chooses_it": layout == chosen,
    }


def mnist() -> tuple[Dataset, str]:
    if data.available("mnist"):
        return data.mnist(), "mnist"
    dataset = gaussian_classes(jax.random.key(0), 10, 6000, 784)
    return as_pixels(dataset), "random pixels"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
