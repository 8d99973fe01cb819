"""The samples of a batch that are still on their way, gathered into ever smaller batches.

A loop over a batch costs as much while one sample runs as while all do.  Here it stops when half of the samples have
ended, the others are gathered, and a loop of half the width goes on with them: with k samples on their way a step costs
at most that of max(2k, smallest).  Each width is compiled on its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Int

from bptoolkit.fixed_point.batch import anyone
from bptoolkit.types import PyTree

__all__ = ["until_all_end"]


def until_all_end(
    step: Callable[[PyTree], PyTree],
    running: Callable[[PyTree], Bool[Array, ""]],
    path: PyTree,
    common: PyTree,
    smallest: int,
) -> PyTree:
    """The loop `while running(path): path = step(path)` of one sample; the batches are those of the innermost `vmap`.

    Args:
        step: path -> path, which leaves a path that has ended as it is; may close over anything.
        running: whether a path has not ended, by the path alone.
        path: of one sample.
        common: a tree like path: True for what is one for the whole batch, such as a counter that all share.
        smallest: width that is not halved any more.
    """
    pure, captured = _hoisted(step, path)

    @custom_vmap
    def loop(captured: list[Any], path: PyTree) -> PyTree:
        return lax.while_loop(lambda path: anyone(running(path)), lambda path: pure(captured, path), path)

    @loop.def_vmap
    def _(size: int, batched: list[PyTree], captured: list[Any], path: PyTree) -> tuple[PyTree, PyTree]:
        axes = [0 if on else None for on in batched[0]], jax.tree.map(lambda one: None if one else 0, common)
        paths = jax.tree.map(partial(_with_axis, size), batched[1], common, path)
        ended = _in_halves(pure, running, axes, smallest, captured, paths)
        return ended, jax.tree.map(lambda one: not one, common)

    return loop(captured, path)


def _hoisted(f: Callable[[PyTree], PyTree], example: PyTree) -> tuple[Callable, list[Any]]:
    """f with all arrays that it closes over, of any dtype, as a first argument; and these arrays."""
    closed = jax.make_jaxpr(f)(example)

    def pure(captured: list[Any], argument: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten(argument)
        whole = jax.extend.core.ClosedJaxpr(closed.jaxpr, captured)
        return jax.tree.unflatten(tree, jax.extend.core.jaxpr_as_fun(whole)(*leaves))

    return pure, list(closed.consts)


def _with_axis(size: int, batched: bool, common: bool, leaf: Array) -> Array:
    """A leaf with a leading axis of the batch, unless it is common to all."""
    if common:
        return leaf[0] if batched else leaf
    return leaf if batched else jnp.broadcast_to(leaf, (size, *leaf.shape))


def _in_halves(step, running, axes, smallest: int, captured: list[Any], paths: PyTree) -> PyTree:
    """All paths ended: at least half of them here, the rest in a batch of half the width."""
    alive = jax.vmap(running, (axes[1],))
    width = len(alive(paths))
    half = -(-width // 2)
    left = half if width > max(smallest, 1) else 0
    more = lambda paths: anyone(jnp.sum(alive(paths), dtype=jnp.int32) > left)
    paths = lax.while_loop(more, partial(jax.vmap(step, axes, axes[1]), captured), paths)
    if left == 0:
        return paths
    chosen = jnp.argsort(~alive(paths), stable=True)[:half]
    few = _gather(axes[0], captured, chosen), _gather(axes[1], paths, chosen)
    rest = _in_halves(step, running, axes, smallest, *few)
    back = lambda axis, leaf, new: new if axis is None else leaf.at[chosen].set(new, unique_indices=True)
    return jax.tree.map(back, axes[1], paths, rest, is_leaf=lambda axis: axis is None)


def _gather(axes: PyTree, tree: PyTree, chosen: Int[Array, "k"]) -> PyTree:
    """The chosen samples; what has no axis of the batch as it is."""
    pick = lambda axis, leaf: leaf if axis is None else leaf[chosen]
    return jax.tree.map(pick, axes, tree, is_leaf=lambda axis: axis is None)
