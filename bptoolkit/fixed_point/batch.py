"""Loops that end together under `vmap`: what has ended is masked, and nothing else is selected.

`lax.while_loop` with a predicate of its own for each sample of a batch selects every array it carries at every step,
old or new: a history of m vectors is then read and written whole, m times what a step needs.  Here the predicate is one
for the whole batch (`anyone`), and the body keeps what a sample ended with.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool

from bptoolkit import trees
from bptoolkit.types import Memory, PyTree, State

__all__ = ["anyone", "if_anyone", "masking", "shared"]


@custom_vmap
def anyone(running: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether this sample, or any other in the batches of all `vmap`s around it, is running."""
    return running


@anyone.def_vmap
def _(size: int, batched: list[bool], running: Bool[Array, "b"]) -> tuple[Bool[Array, ""], bool]:
    del size, batched
    return anyone(jnp.any(running, axis=0)), False


def if_anyone(needed: Bool[Array, ""], more: Callable[[PyTree], PyTree], otherwise: PyTree) -> PyTree:
    """more(otherwise), where this sample or any other of the batches around it needs that; else nothing is computed."""
    return lax.cond(anyone(needed), more, lambda same: same, otherwise)


def masking(update: Callable) -> Callable[..., tuple[State, Memory]]:
    """A solver's update whose memory stays as it is where the keyword `live` is False.

    An update that names `live` sees to that itself, at the price of what it has written; of any other the whole memory
    is selected.
    """
    if "live" in inspect.signature(update).parameters:
        return update

    def masked(r: State, memory: Memory, z: State, *, live: Bool[Array, ""], **extra) -> tuple[State, Memory]:
        change, new = update(r, memory, z, **extra)
        return change, trees.choose(live, new, memory)

    return masked


def shared(update: Callable, memory: Memory) -> Memory:
    """Which leaves of one sample's memory are one for the whole batch: the counters of an update that names `live`."""
    counts = lambda leaf: jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
    own = "live" in inspect.signature(update).parameters
    return jax.tree.map(lambda leaf: own and counts(leaf), memory)
