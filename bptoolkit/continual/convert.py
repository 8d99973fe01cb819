"""Strengths of penalties, carried over from one convention to another.

penalty = λ · h · Σ_i F_i (θ_i − a_i)²,     h = ½ or 1,   F a mean or a sum over rows, of single rows or of batches
"""

from typing import NamedTuple

from jaxtyping import Array, Float

from bptoolkit.continual.strengths import check_nonnegative, check_whole

__all__ = ["Convention", "convert_strength"]


class Convention(NamedTuple):
    """How a penalty is written.

    half: with the factor ½.
    summed: F is a sum over the task's rows (or batches), else a mean.
    batch: rows whose mean gradient is squared; 1 where each row's is, as it should be.
    """

    half: bool = True
    summed: bool = False
    batch: int = 1


def convert_strength(
    strength: Float[Array, ""] | float, source: Convention, target: Convention, rows: int
) -> Float[Array, ""] | float:
    """The strength that makes the same penalty in the target's convention.

    Exact for ½ and for sums and means.  From or to squares of batch means it holds on average, for labels that the
    net itself would draw: then the mean of B independent scores has a square B times smaller than one score's.  With
    true labels of a net that has not learned them, gradients do not cancel, and no factor is right.

    Args:
        strength: λ under `source`.
        source, target: `Convention()` is that of `ewc`.
        rows: of the task, for sums.

    Raises:
        ValueError: a negative strength, less than one row, or a batch of less than one or more than all rows.

    >>> convert_strength(100.0, Convention(half=False), Convention(), rows=1000)
    200.0
    >>> convert_strength(1.0, Convention(summed=True), Convention(), rows=1000)
    1000.0
    """
    check_nonnegative("strength", strength)
    check_whole(rows=rows)
    for convention in (source, target):
        check_whole(batch=convention.batch)
        if convention.batch > rows:
            raise ValueError(f"batch must be in 1 … rows = {rows}, got {convention.batch}.")
    return strength * (_size(source, rows) / _size(target, rows))


def _size(convention: Convention, rows: int) -> float:
    """The penalty at strength 1, in units of ½ · the mean over rows."""
    terms = rows / convention.batch if convention.summed else 1
    return (1 if convention.half else 2) * terms / convention.batch
