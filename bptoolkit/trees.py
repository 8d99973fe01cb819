"""Arithmetic on pytrees: sums, products, norms and choices, leaf by leaf."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bptoolkit.types import PyTree


def add(a: PyTree, b: PyTree) -> PyTree:
    """a + b."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """a − b."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(factor: Float[Array, ""] | float, a: PyTree) -> PyTree:
    """factor · a, in the dtype of each leaf of a."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, a)


def zeros_like(a: PyTree) -> PyTree:
    """A tree of zeros of the shapes and dtypes of a (arrays or `ShapeDtypeStruct`s)."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), a)


def choose(condition: Bool[Array, ""], a: PyTree, b: PyTree) -> PyTree:
    """a where the condition holds, else b: a select, so a NaN in the other branch does no harm."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
