"""Memory: a run that cannot fit is refused before anything is written, one that finds none left ends in a sentence.

    least = nets × (weights + optimiser's state) + rows of a batch × (inputs + outputs)

More is needed for gradients, activations, memories of strategies and the data.  What lies between this bound and the
true need is refused by the system while the run goes on, or, on Linux, ended by it with SIGKILL: lower the numbers.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax

from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.streams import spec
from bptoolkit.runs.record import RunError, first_line

__all__ = ["check_memory", "enough_memory", "least"]

GIB = 2**30
SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")  # in what XLA says
ADVICE = "Take fewer seeds, smaller nets, or fewer rows in a batch."


def least(experiment: Experiment, nets: int) -> int:
    """Bytes that a run of so many nets needs at the least."""
    learner, optimizer = experiment.build(experiment.hyper)
    params = jax.eval_shape(learner.model.init, jax.random.key(0))
    carried = (params, jax.eval_shape(optimizer.init, params))
    state = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(carried))
    example = spec(experiment.stream).example
    row = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in (example.x, example.target))
    return nets * state + (experiment.batch or 0) * row


def check_memory(experiments: Mapping[str, Experiment], nets: int) -> None:
    """Raise, where the CPU computes, unless the machine has the least that each experiment needs.

    Raises:
        ValueError: with what is required and what there is.
    """
    if jax.default_backend() != "cpu":
        return
    there = jax.process_count() * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name, experiment in experiments.items():
        if (required := least(experiment, nets)) > there:
            raise ValueError(
                f"{name} needs at least {required / GIB:,.0f} GiB of memory for {nets} seeds, got {there / GIB:,.0f}. "
                f"{ADVICE}"
            )


@contextmanager
def enough_memory() -> Iterator[None]:
    """Say in a sentence when there is none left, be it for XLA or for NumPy.

    Raises:
        RunError: in place of their errors.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in SIGNS):
            raise
        raise RunError(f"The run needs more memory than there is ({first_line(error)}). {ADVICE}") from error
