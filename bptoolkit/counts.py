"""Numbers as they are written in a program: known before it runs, so that a wrong one is refused at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.core import Tracer

__all__ = ["fails", "written"]


def written(value: Any) -> bool:
    """Whether a number is known now: a Python, NumPy or JAX number, and not one that is traced."""
    return not isinstance(value, Tracer)


def fails(holds: Callable[..., Any], *values: Any) -> bool:
    """Whether numbers that are all written do not hold; NaN is to hold nowhere, and what is traced passes."""
    return all(map(written, values)) and not np.all(holds(*map(np.asarray, values)))
