"""What GEM's two MNIST tables share: 20 tasks of 1000 rows, one pass in batches of ten, 784-100-100-10, SGD.

Lopez-Paz & Ranzato (2017), NeurIPS; rates and net as in the authors' code.
"""

from collections.abc import Mapping

import optax

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.streams import Stream
from bptoolkit.runs.published import Column, Figure, Table
from experiments.published.nets import small_net

TASKS, ROWS, BATCH, MEMORY, MARGIN = 20, 1000, 10, 256, 0.5
NO_EWC = "its Fisher is the squared mean gradient of a batch, for which its strength is made; there is none here"
NO_MULTIMODAL = "an input layer for each task is no strategy here"
PER_TASK = (TASKS - 1) / TASKS  # the authors' code divides both transfers by T, where the paper has T − 1


def experiment(stream: Stream, method: str, rates: Mapping[str, float]) -> Experiment | None:
    """One row of a table."""
    strategies = {"single": cl.naive, "GEM": cl.gem(MEMORY, margin=MARGIN)}
    if method not in strategies:
        return None
    learner = strategies[method](learning.backprop(small_net()))
    return Experiment(stream, learner, optax.sgd(rates[method]), steps=ROWS // BATCH, batch=BATCH)


def table(
    title: str, published: Mapping[str, tuple[float, float, float]], define, deviations: tuple[str, ...]
) -> Table:
    """A table of three columns from one kind of run."""
    missing = {"EWC": (f"not run: {NO_EWC}",), "multimodal": (f"not run: {NO_MULTIMODAL}",)}
    return Table(
        title=title,
        reference="Lopez-Paz & Ranzato (2017), NeurIPS: one seed",
        notes=("BWT and FWT are divided by the number of tasks, as the authors' code does.",),
        columns={
            "ACC": Column("domain", cl.average_accuracy),
            "BWT": Column("domain", lambda r: PER_TASK * cl.backward_transfer(r)),
            "FWT": Column("domain", lambda r: PER_TASK * cl.forward_transfer(r, r.untrained)),
        },
        published={
            method: {name: Figure(value, None, "3p") for name, value in zip(("ACC", "BWT", "FWT"), row, strict=True)}
            for method, row in published.items()
        },
        define=define,
        deviations=lambda method, scenario: missing.get(method, deviations),
        weight={"single": 1.0, "GEM": 60.0},
        unit=0.01,
    )
