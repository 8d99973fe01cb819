"""Does a net that settles forget differently from a feed-forward net of equal size?  Split digits, offline.

Run:    make demo                                  (or: python scripts/run.py split_digits --help)
Nets:   64-100-10 with ReLU (7,510 weights) and 57 rate units (7,534 weights).
"""

from dataclasses import dataclass

from bptoolkit import data
from bptoolkit.continual import Experiment
from experiments.grid import Grid, grid


@dataclass(frozen=True)
class Config(Grid):
    """Split digits: 5 tasks × 2 classes."""


def define(config: Config = Config()) -> dict[str, Experiment]:
    return grid(data.digits(), config)
