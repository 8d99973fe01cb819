"""Numbers that a strategy is given: refused where they are written and wrong, kept in memory where they are right."""

from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from bptoolkit import counts
from bptoolkit.learning.learner import Learner

__all__ = ["Number", "check_nonnegative", "check_positive", "check_share", "check_whole", "traced"]

Number: TypeAlias = Float[Array, ""] | float


def check_whole(least: int = 1, /, **sizes: int | None) -> None:
    """`counts.check_whole`, for a strategy: it may have been given a learner, or a number of hyper."""
    for name, value in sizes.items():
        if isinstance(value, Learner | Tracer):
            raise ValueError(f"{name} must be a whole number, {_got(value)}")
    counts.check_whole(least, **sizes)


def check_nonnegative(name: str, value: Number) -> None:
    """Raise where a written number is negative or not finite; one that is traced passes."""
    _check_number(name, value)
    if counts.written(value) and not np.all(_finite(value) >= 0):
        raise ValueError(
            f"{name} must be at least 0, got {value}. Take 0 for no effect, a finite number for any other."
        )


def check_share(name: str, value: Number, *, but: float | None = None) -> None:
    """Raise where a written number is outside [0, 1], or is that end of it which is left out."""
    _check_number(name, value)
    if not counts.written(value):
        return
    number = _finite(value)
    if not 0 <= number <= 1 or number == but:
        start, end = "(" if but == 0 else "[", ")" if but == 1 else "]"
        raise ValueError(f"{name} must be in {start}0, 1{end}, got {value}.")


def check_positive(name: str, value: Number) -> None:
    """Raise where a written number is not above 0, or not finite."""
    _check_number(name, value)
    if counts.written(value) and not np.all(_finite(value) > 0):
        raise ValueError(f"{name} must be positive, got {value}.")


def _check_number(name: str, value: Any) -> None:
    """Raise where something else than one number was given."""
    if not counts.is_number(value):
        raise ValueError(f"{name} must be a real number, {_got(value)}")
    if np.shape(value) != ():
        raise ValueError(
            f"{name} must be one number, got an array of shape {np.shape(value)}. For many at once: run_grid."
        )


def _got(value: Any) -> str:
    if isinstance(value, Learner):
        return "got a learner. Give the strategy its numbers first, then the learner: ewc(10.0)(backprop(model))."
    if isinstance(value, Tracer):
        return "got a number of hyper. Whole numbers shape the program: make an experiment for each."
    return f"got {value!r}."


def _finite(value: Number) -> np.ndarray:
    """The number, NaN where it is infinite as it is kept."""
    with np.errstate(over="ignore"):
        number = np.asarray(value).astype(jnp.result_type(float))
    return np.where(np.isfinite(number), number, np.nan)


def traced(value: Number) -> Float[Array, ""]:
    """A number as it is kept in memory."""
    return jnp.asarray(value, jnp.result_type(float))
