"""Nets × strategies on a split data set: what the split experiments share.

static       feed-forward
recurrent    settles; its gradient is Almeida and Pineda's
accurate     the same with another number of units, as many as a question needs for an equal accuracy
one-step     of the size of recurrent; its gradient goes through the last step alone
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import optax

from bptoolkit import continual as cl
from bptoolkit import fixed_point as fp
from bptoolkit import learning, models
from bptoolkit.runs.fields import Amount, Count, check_fields
from bptoolkit.types import Dataset, Model

Net = Literal["static", "recurrent", "accurate", "one-step"]
Strategy = Literal["naive", "ewc", "lwf", "replay", "joint"]

TRACED = ("rate", "strength", "tolerance", "settle_steps")  # numbers whose change compiles nothing


@dataclass(frozen=True)
class Grid:
    """Every field is a flag of `scripts/run.py`."""

    scenario: tuple[Literal["class", "domain", "task"], ...] = ("class",)  # what the net must tell
    nets: tuple[Net, ...] = ("static", "recurrent")
    strategies: tuple[Strategy, ...] = ("naive", "ewc", "replay", "joint")
    classes_per_task: Count = 2
    hidden: tuple[Count, ...] = (100,)  # layers of the static net
    units: Count = 57  # of the recurrent net; the default has as many weights as the static one
    accurate_units: Count | None = None  # of the accurate net; as many as of the recurrent one if left out
    activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid"  # of the recurrent net
    steps: Count = 200  # updates per task
    batch: Count = 32  # rows per update
    rate: Amount = 2e-3  # of Adam
    strength: Amount = 1e3  # of EWC, with the mean Fisher information and the factor ½
    fisher: Literal["exact", "sampled", "empirical"] = "exact"
    samples: Count | None = 256  # rows of a task that the Fisher information is taken over; None for all
    per_class: Count = 20  # rows of each class that replay keeps
    tolerance: Amount = 1e-3  # relative error at which a relaxation ends, forward and backward
    settle_steps: Count = 60  # allowed to a relaxation
    evaluate_every: Count | None = None  # updates between two tests of all tasks; None tests after each task only
    probe: Count | None = 256  # test rows on which plasticity is measured after each task; None measures none
    diagnose: Count | None = None  # test rows of each task by which it is told why the net answers wrongly; None: not

    def __post_init__(self):
        check_fields(self)


def grid(dataset: Dataset, config: Grid) -> dict[str, cl.Experiment]:
    """One experiment for each "net/strategy/scenario"."""
    hyper = {name: value for name, value in asdict(config).items() if name in TRACED}
    return {
        f"{net}/{strategy}/{scenario}": cl.Experiment(
            cl.split(dataset, config.classes_per_task, scenario),
            _learner(dataset, config, net, strategy, scenario),
            lambda hyper: optax.adam(hyper["rate"]),
            steps=config.steps,
            batch=config.batch,
            hyper=hyper,
            evaluate_every=config.evaluate_every,
            probe=config.probe,
            diagnose=config.diagnose,
        )
        for scenario in config.scenario
        for net in config.nets
        for strategy in config.strategies
    }


def _model(config: Grid, net: Net, inputs: int, outputs: int, hyper) -> Model:
    """The net, with what its relaxation stops at."""
    if net == "static":
        return models.mlp(inputs, *config.hidden, outputs)
    stop = fp.Stop(rtol=hyper["tolerance"], max_steps=hyper["settle_steps"])
    adjoint = fp.one_step() if net == "one-step" else fp.almeida_pineda(stop=stop)
    units = config.accurate_units or config.units if net == "accurate" else config.units
    g = getattr(models.activations, config.activation)
    return models.equilibrium(
        models.rate_cell(inputs, units, outputs, activation=g), fp.implicit(fp.picard(), adjoint, stop)
    )


def _learner(dataset: Dataset, config: Grid, net: Net, strategy: Strategy, scenario: str) -> Callable:
    """What makes the learner from the traced numbers."""
    inputs = dataset.train.x[0].size
    outputs = config.classes_per_task if scenario == "domain" else dataset.classes
    remedies = {
        "naive": lambda hyper: cl.naive,
        "joint": lambda hyper: cl.joint,
        "lwf": lambda hyper: cl.lwf(),
        "replay": lambda hyper: cl.replay(config.per_class),
        "ewc": lambda hyper: cl.ewc(hyper["strength"], fisher=config.fisher, samples=config.samples),
    }
    return lambda hyper: remedies[strategy](hyper)(learning.backprop(_model(config, net, inputs, outputs, hyper)))
