"""Fair sizes: the number of units at which one network has as many parameters as another."""

from collections.abc import Callable
from math import prod

import jax

from bptoolkit.counts import check_whole
from bptoolkit.types import Cell, Model

__all__ = ["count_parameters", "matched_units"]


def count_parameters(net: Model | Cell) -> int:
    """How many numbers the parameters of `net`, a model or a cell, hold; none is drawn."""
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def matched_units(make: Callable[[int], Model | Cell], like: Model | Cell | int) -> int:
    """The number of units at which make(units) has the parameter count nearest to that of `like`.

    matched_units(lambda units: rate_cell(64, units, 10), mlp(64, 100, 10)) says how many recurrent units compare with
    100 feed-forward ones.  Of two that are equally near, the smaller.

    Args:
        make: units -> a model or a cell, with more parameters the more units.
        like: the net to be matched, or its number of parameters.

    Raises:
        ValueError: one unit alone has more parameters than that, or more units do not mean more parameters.
    """
    if isinstance(like, Model | Cell):
        wanted = count_parameters(like)
    else:
        check_whole(1, "Or give the net to be matched.", like=like)
        wanted = int(like)
    count = lambda units: count_parameters(make(units))
    if count(1) > wanted:
        raise ValueError(f"Even one unit has {count(1)} parameters, wanted {wanted}. Match a larger net.")
    above = 2
    while count(above) < wanted:
        if count(2 * above) <= count(above):
            raise ValueError(
                f"make must have more parameters the more units, got {count(above)} at {above} units and "
                f"{count(2 * above)} at {2 * above}. Pass the number of units on, as in rate_cell(64, units, 10)."
            )
        above *= 2

    below = above // 2
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if count(middle) < wanted else (below, middle)
    return min(below, above, key=lambda units: abs(count(units) - wanted))
