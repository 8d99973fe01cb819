"""Leaves of a pytree as NumPy arrays that any file format can hold, and back."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (its import names bfloat16 and the like to NumPy)
import numpy as np

__all__ = ["Kind", "pack", "unpack"]


class Kind(NamedTuple):
    """What an array is besides its values: plain data."""

    shape: list[int]
    dtype: str
    key: str | None  # the generator of PRNG keys, whose data the array holds


def pack(leaf: Any) -> tuple[np.ndarray, Kind]:
    """A leaf as an array of numbers; typed PRNG keys as their data."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        array = np.asarray(jax.random.key_data(leaf))
        return array, Kind(list(array.shape), array.dtype.name, str(jax.random.key_impl(leaf)))
    array = np.asarray(leaf)
    return array, Kind(list(array.shape), array.dtype.name, None)


def unpack(array: np.ndarray, kind: Kind) -> Any:
    """The leaf of which `pack` made this.

    Raises:
        ValueError: an array of another shape or width.
    """
    array = np.asarray(array)
    dtype = np.dtype(kind.dtype)
    if list(array.shape) != kind.shape or array.dtype.itemsize != dtype.itemsize:
        raise ValueError(f"{kind.dtype}{tuple(kind.shape)} expected, got {array.dtype.name}{array.shape}")
    array = array if array.dtype == dtype else array.view(dtype)  # NumPy files know no bfloat16
    return array if kind.key is None else jax.random.wrap_key_data(jnp.asarray(array), impl=kind.key)
