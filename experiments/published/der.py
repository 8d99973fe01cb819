"""What DER's two MNIST tables share: 20 tasks of all 60,000 rows, one epoch in batches of 128, 784-100-100-10, SGD.

Buzzega et al. (2020), NeurIPS; as many rows are replayed as the batch has.
"""

from collections.abc import Mapping
from typing import NamedTuple

import optax

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.streams import Stream
from bptoolkit.runs.published import Column, Figure, Table
from experiments.published.nets import small_net

TASKS, BATCH, ROWS = 20, 128, 60_000


class Row(NamedTuple):
    """A published accuracy, and how it came about; no rate where it cannot be run here."""

    accuracy: float
    rate: float | None = None
    capacity: int = 0
    alpha: float | None = None
    beta: float | None = None


def strategy(row: Row):
    """SGD without a buffer, else experience replay, DER or DER++."""
    if not row.capacity:
        return cl.naive
    if row.alpha is None:
        return cl.reservoir_replay(row.capacity)
    if row.beta is None:
        return cl.der(row.capacity, row.alpha)
    return cl.der_plus_plus(row.capacity, row.alpha, row.beta)


def experiment(stream: Stream, row: Row) -> Experiment | None:
    """One row of a table."""
    if row.rate is None:
        return None
    learner = strategy(row)(learning.backprop(small_net()))
    return Experiment(stream, learner, optax.sgd(row.rate), steps=ROWS // BATCH, batch=BATCH)


def table(title: str, rows: Mapping[str, Row], stream) -> Table:
    """A table of one column."""
    return Table(
        title=title,
        reference="Buzzega, Boschini, Porrello, Abati & Calderara (2020), NeurIPS",
        notes=("Mean of ten seeds, from general knowledge, unverified; standard errors were not at hand.",),
        columns={"Accuracy": Column("domain", lambda r: 100 * cl.average_accuracy(r))},
        published={method: {"Accuracy": Figure(row.accuracy, None, "rec")} for method, row in rows.items()},
        define=lambda method, scenario: experiment(stream(), rows[method]),
        deviations=lambda method, scenario: (
            "not run: its numbers are not at hand"
            if rows[method].rate is None
            else "the last 96 rows of an epoch, which fill no batch, are left out",
        ),
        seeds=10,
        weight={method: 1.0 + 1.5 * bool(row.capacity) for method, row in rows.items()},
    )
