"""Does a net that settles forget differently from a feed-forward net of equal size?  Split MNIST.

Run:    python scripts/run.py split_mnist --seeds 3
Nets:   784-400-400-10 with ReLU (478,410 weights) and 400 rate units (478,010 weights).
Budget and net follow van de Ven, Tuytelaars & Tolias (2022), but for the number of steps: theirs is --steps 2000.
"""

from dataclasses import dataclass

from bptoolkit import data
from bptoolkit.continual import Experiment
from bptoolkit.runs.fields import Amount, Count
from experiments.grid import Grid, grid


@dataclass(frozen=True)
class Config(Grid):
    """Split MNIST: 5 tasks × 2 classes."""

    hidden: tuple[Count, ...] = (400, 400)
    units: Count = 400
    steps: Count = 100
    batch: Count = 128
    rate: Amount = 1e-3
    per_class: Count = 100
    limit: Count | None = None  # rows of the training and of the test part; all if left out


def define(config: Config = Config()) -> dict[str, Experiment]:
    return grid(data.mnist(config.limit), config)
