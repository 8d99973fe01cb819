"""What is run, and what comes out: plain data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from bptoolkit.continual.activity import Plasticity
from bptoolkit.continual.diagnose import Findings
from bptoolkit.continual.gates import hidden_units
from bptoolkit.continual.streams import Stream, spec
from bptoolkit.counts import check_whole
from bptoolkit.learning.fit import Curves, checked_optimizer
from bptoolkit.learning.learner import Learner, StreamSpec, check_outputs
from bptoolkit.types import Params

__all__ = ["Cost", "Experiment", "Hyper", "Result"]

PROBED = 10_000  # rows of a probe, or of a diagnosis in a task, at most

Hyper: TypeAlias = Mapping[str, Any]
"""The numbers that an experiment's learner and optimiser are made from, by name; traced while a run goes on."""


@dataclass(frozen=True)
class Experiment:
    """A stream, a learner, an optimiser and a budget.

    stream: the tasks.
    learner: or a function of `hyper` that makes one; then its numbers are traced: a grid of them is one program, and
        another value finds its programs in JAX's persistent cache, where that is on.
    optimizer: any optax optimiser, or a function of `hyper` that makes one.
    steps: updates per task.
    batch: rows an update; None for all rows of the stage.
    replacement: draw rows independently in place of going through epochs.
    reset_optimizer: start every task with a fresh optimiser state.
    hyper: numbers that learner and optimizer are made from.
    evaluate_every: updates between two tests of all tasks, for `Result.within`; a divisor of steps.  None tests after
        each task only.
    probe: test rows, spread evenly over all tasks, on which `Result.plasticity` is measured after each task, of the
        learner's model as it stands; a few hundred are enough.  None measures none.
    diagnose: test rows of each task, and as many training rows of each, spread evenly over it, by which
        `Result.diagnosis` tells after each task why the learner answers wrongly, and whether it knows; all rows of a
        task that has fewer.  Each time a linear probe is fitted to them; a few hundred are enough.  None asks nothing.
    """

    stream: Stream
    learner: Learner | Callable[[Hyper], Learner]
    optimizer: optax.GradientTransformation | Callable[[Hyper], optax.GradientTransformation]
    steps: int
    batch: int | None = 128
    replacement: bool = False
    reset_optimizer: bool = False
    hyper: Hyper = field(default_factory=dict)
    evaluate_every: int | None = None
    probe: int | None = None
    diagnose: int | None = None

    def __post_init__(self):
        if not isinstance(self.stream, Stream):
            raise ValueError(
                f"stream must be a Stream, got {type(self.stream).__name__}. Make one of a data set: split(dataset, 2)."
            )
        check_whole(steps=self.steps, batch=self.batch)
        check_whole(probe=self.probe, diagnose=self.diagnose, evaluate_every=self.evaluate_every)
        if self.probe is not None and self.probe > PROBED:
            raise ValueError(f"probe must be 1 … {PROBED:,} rows, or None, got {self.probe}.")
        if self.diagnose is not None and self.diagnose > PROBED:
            raise ValueError(f"diagnose must be 1 … {PROBED:,} rows a task, or None, got {self.diagnose}.")
        every = self.evaluate_every
        if every is not None and self.steps % every:
            raise ValueError(f"evaluate_every must divide steps, {self.steps}, got {every}.")

    def check(self) -> None:
        """Raise, before anything is compiled, where learner or stream cannot work with these numbers."""
        learner, _ = self.build(self.hyper)
        params = jax.eval_shape(learner.model.init, jax.random.key(0))
        described = self.described()
        check_outputs(learner.model, params, described.example)
        if self.probe is not None and not hidden_units(learner.model, params, "probe"):
            raise ValueError("probe needs a model with hidden units, got one with none. Leave it out: probe=None.")
        jax.eval_shape(lambda params, key: learner.init(params, described, key), params, jax.random.key(0))

    def described(self) -> StreamSpec:
        """The static facts that a learner's memory is built from."""
        return spec(self.stream)._replace(steps=self.steps)

    def build(self, hyper: Hyper) -> tuple[Learner, optax.GradientTransformation]:
        """The learner and the optimiser for these numbers."""
        learner = self.learner(hyper) if callable(self.learner) else self.learner
        if not isinstance(learner, Learner):
            raise ValueError(
                f"learner must be a Learner, or make one of hyper, got {type(learner).__name__}. "
                "Write ewc(10.0)(backprop(model)), or lambda hyper: ewc(hyper['strength'])(backprop(model))."
            )
        return learner, made_optimizer(self.optimizer, hyper)


def made_optimizer(given: Any, hyper: Hyper) -> optax.GradientTransformation:
    """What was given, or what it makes of these numbers."""
    is_one = isinstance(given, optax.GradientTransformation)
    return checked_optimizer(given(hyper) if callable(given) and not is_one else given)


@dataclass(frozen=True)
class Cost:
    """What a run took.

    parameters: weights of the net.
    flops: of one prediction, for a net that settles at its mean number of steps.
    ms_per_1000: milliseconds for 1000 predictions, compiled, one net.
    seconds: of training and evaluation, without compiling; compile_seconds: of compiling, or of reading the cache.
    steps: updates made per seed.
    peak_bytes: temporary memory of the largest compiled program on one device, beside data and state.
    memory_bytes: what the learner keeps of one net beside weights and optimiser: stored rows, anchors, old nets.
    layout: how the seeds lay on the devices.
    """

    parameters: int
    flops: float
    ms_per_1000: float
    seconds: float
    compile_seconds: float
    steps: int
    peak_bytes: int
    memory_bytes: int
    layout: str


@dataclass(frozen=True)
class Result:
    """A learner on a stream, over seeds.  T tasks, S seeds.

    accuracy: (S, after 1 … T, on 1 … T), on test rows; train_accuracy likewise, on as many training rows.
    untrained, untrained_train: (S, T), before any training.
    curves: each (S, T, bins): loss, settling steps and unconverged shares while training on each task, forward and
        backward; NaN for nets that do not settle.
    finite: (S, T), False where weights were NaN or infinite after that task.
    params: the weights at the end, with a leading axis of seeds.
    within: (S, evaluations, on), test accuracies every `evaluate_every` updates, task after task; the last of a task is
        the one after it ended.  None where only these were asked for.
    ends: which evaluation is the last of each task.
    plasticity: each (S, untrained and after 1 … T): dormant units, effective rank and weight norm.  None without
        `probe`.
    diagnosis: each (S, untrained and after 1 … T, on 1 … T): accuracies plain, masked, by nearest mean and by linear
        probe, calibration error and Brier score, of the learner's own answers, on the rows of `diagnose`; `plain` is
        `accuracy` where these are all.  Nearest mean and linear probe are NaN where there are no features of one net:
        for `separate`, and for models without hidden units or that do not show them.  None without `diagnose`.
    """

    accuracy: np.ndarray
    train_accuracy: np.ndarray
    untrained: np.ndarray
    untrained_train: np.ndarray
    curves: Curves
    finite: np.ndarray
    seeds: tuple[int, ...]
    params: Params
    cost: Cost
    within: np.ndarray | None = None
    ends: tuple[int, ...] = ()
    plasticity: Plasticity | None = None
    diagnosis: Findings | None = None

    @property
    def unconverged(self) -> np.ndarray:
        """(S, T): share of forward settlings in training that did not converge; NaN for nets that do not settle."""
        return np.asarray(self.curves.unconverged).mean(-1)
