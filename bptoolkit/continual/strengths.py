"""Numbers that a strategy is given: refused where they are written and wrong, kept in memory where they are right."""

from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Number", "check_nonnegative", "check_positive", "check_share", "traced"]

Number: TypeAlias = Float[Array, ""] | float


def check_nonnegative(name: str, value: Number) -> None:
    """Raise where a written number is negative or NaN; one that is traced passes."""
    if isinstance(value, int | float) and not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}. Take 0 for no effect.")


def check_share(name: str, value: Number) -> None:
    """Raise where a written number is outside [0, 1]."""
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}.")


def check_positive(name: str, value: Number) -> None:
    """Raise where a written number is not above 0."""
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def traced(value: Number) -> Float[Array, ""]:
    """A number as it is kept in memory."""
    return jnp.asarray(value, jnp.result_type(float))
