"""Do networks that settle forget differently?  Split MNIST and Fashion-MNIST, four nets, four strategies, paired seeds.

Run, for D in mnist and fashion:
        python scripts/sweep.py static_vs_recurrent --dataset D --strategies ewc --validate 2 --seeds 3 --key 1 \
                --over strength 10 100 1e3 1e4 1e5 1e6 1e7
        python scripts/run.py static_vs_recurrent --dataset D --chosen SWEEP
        python scripts/answer.py RUN_OF_MNIST RUN_OF_FASHION --sweeps SWEEP …
Nets:   784-100-10 with ReLU (79,510 weights) and 90 rate units with tanh (79,660), trained with the gradient of
        Almeida and Pineda, or through one step alone; and as many rate units as reach the static net's accuracy on all
        ten classes at once, to 0.4 points on validation rows (150 and 60):
        python scripts/sweep.py static_vs_recurrent --dataset D --classes-per-task 10 --steps 1000 --scenario class \
                --nets static recurrent --strategies naive --over units 45 60 90 150 --validate 1 --seeds 3 --key 1
Budget: 5 tasks × 200 updates of 32 rows with Adam 1e-3; EWC's strength is chosen for each net and scenario by the
        first command, replay keeps 20 rows a class.
Parts:  `run.py … --strategies ewc --chosen SWEEP` runs EWC alone anew; answer.py takes its rows from the run that is
        named last.
"""

from dataclasses import dataclass, replace
from typing import Literal

from bptoolkit import data
from bptoolkit.continual import Experiment
from bptoolkit.runs.fields import Amount, Count
from experiments.grid import Grid, Net, Strategy, grid

READ = {"mnist": data.mnist, "fashion": data.fashion_mnist}
ACCURATE = {"mnist": 150, "fashion": 60}


@dataclass(frozen=True)
class Config(Grid):
    """Split MNIST or Fashion-MNIST: 5 tasks × 2 classes."""

    dataset: Literal["mnist", "fashion"] = "mnist"
    scenario: tuple[Literal["class", "domain", "task"], ...] = ("task", "domain", "class")
    nets: tuple[Net, ...] = ("static", "recurrent", "accurate", "one-step")
    strategies: tuple[Strategy, ...] = ("naive", "ewc", "lwf", "replay")
    units: Count = 90
    accurate_units: Count | None = None  # as many as an equal accuracy takes on that data set, if left out
    activation: Literal["sigmoid", "tanh", "relu"] = "tanh"
    rate: Amount = 1e-3
    limit: Count | None = None  # rows of the training and of the test part; all if left out


def define(config: Config = Config()) -> dict[str, Experiment]:
    sized = replace(config, accurate_units=config.accurate_units or ACCURATE[config.dataset])
    return grid(READ[config.dataset](config.limit), sized)
