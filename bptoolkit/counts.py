"""Whole numbers that shape a program, and numbers that are written into it: refused where they are none, or wrong."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = ["check_whole", "fails", "is_number", "nonnegative", "positive", "written"]


def check_whole(least: int = 1, advice: str = "", /, **sizes: Any) -> None:
    """Raise unless every size that is given is a whole number of at least 1, or another least one.

    Args:
        least: the smallest that is allowed.
        advice: what to do, the end of the sentence.
        sizes: by name; None for what is left out.
    """
    after = f" {advice}" if advice else ""
    for name, value in sizes.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            got = repr(value) if written(value) else "a traced one, which cannot shape a program"
            raise ValueError(f"{name} must be a whole number, got {got}.{after}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.{after}")


def is_number(value: Any) -> bool:
    """Whether something is a real number, or an array of them: Python's, NumPy's or JAX's, traced or not."""
    if not hasattr(value, "dtype"):
        return isinstance(value, int | float)
    return any(jnp.issubdtype(value.dtype, kind) for kind in (np.floating, np.integer, np.bool_))


def written(value: Any) -> bool:
    """Whether a number is known now: a Python, NumPy or JAX number, and not one that is traced."""
    return not isinstance(value, Tracer)


def fails(holds: Callable[..., Any], *values: Any) -> bool:
    """Whether something is no number, or numbers that are all written do not hold; what is traced passes.

    NaN is to hold nowhere.
    """
    if not all(map(is_number, values)):
        return True
    return all(map(written, values)) and not np.all(holds(*map(np.asarray, values)))


def nonnegative(value: np.ndarray) -> np.ndarray:
    """Whether a number is at least 0 and finite, for `fails`."""
    return (value >= 0) & (value < np.inf)


def positive(value: np.ndarray) -> np.ndarray:
    """Whether a number is positive and finite, for `fails`."""
    return (value > 0) & (value < np.inf)
