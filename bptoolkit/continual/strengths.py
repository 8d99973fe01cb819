"""Numbers that a strategy is given: refused where they are written and wrong, kept in memory where they are right."""

from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

__all__ = ["Number", "check_nonnegative", "check_positive", "check_share", "traced"]

Number: TypeAlias = Float[Array, ""] | float


def check_nonnegative(name: str, value: Number) -> None:
    """Raise where a written number is negative or not finite; one that is traced passes."""
    if _is_written(value) and not np.all(_finite(value) >= 0):
        raise ValueError(
            f"{name} must be at least 0, got {value}. Take 0 for no effect, a finite number for any other."
        )


def check_share(name: str, value: Number) -> None:
    """Raise where a written number is outside [0, 1]."""
    if _is_written(value) and not (np.all(_finite(value) >= 0) and np.all(_finite(value) <= 1)):
        raise ValueError(f"{name} must be in [0, 1], got {value}.")


def check_positive(name: str, value: Number) -> None:
    """Raise where a written number is not above 0, or not finite."""
    if _is_written(value) and not np.all(_finite(value) > 0):
        raise ValueError(f"{name} must be positive, got {value}.")


def _is_written(value: Number) -> bool:
    return not isinstance(value, Tracer)


def _finite(value: Number) -> np.ndarray:
    """The number, NaN where it is infinite."""
    number = np.asarray(value, np.float64)
    return np.where(np.isfinite(number), number, np.nan)


def traced(value: Number) -> Float[Array, ""]:
    """A number as it is kept in memory."""
    return jnp.asarray(value, jnp.result_type(float))
