"""Lanes: the nets that one compiled program trains side by side, one for each seed at each point of a grid of numbers.

    lane = (hyper, key of the seed),    lanes = grid × seeds, the seeds of a point side by side

The numbers of a lane are traced, so that a whole grid is one program.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bptoolkit.continual.experiment import Experiment, Hyper
from bptoolkit.types import Key, PyTree

__all__ = ["Grid", "Lanes", "make_lanes", "points", "seed_numbers"]

SEEDS_MOST = 100_000

Grid: TypeAlias = Mapping[str, Sequence[Any]]
"""Numbers of an experiment's `hyper`, and the values of each; every combination is a point."""


class Lanes(NamedTuple):
    """Who is trained.  L lanes, of which the last may be spare."""

    points: tuple[tuple[Any, ...], ...]  # of the grid, in the order of its names
    seeds: tuple[int, ...]
    hypers: tuple[Hyper, ...]  # of each point
    hyper: PyTree  # leaves (L, …)
    keys: Key  # (L,)

    @property
    def used(self) -> int:
        """How many are no spare ones."""
        return len(self.points) * len(self.seeds)

    def of_point(self, number: int) -> slice:
        """Where the seeds of a point are."""
        return slice(number * len(self.seeds), (number + 1) * len(self.seeds))


def make_lanes(experiment: Experiment, grid: Grid, key: Key, seeds: int | Sequence[int]) -> Lanes:
    """All points of the grid × all seeds.

    Raises:
        ValueError: no key; no seeds, or the same twice; a grid over a number that the experiment does not have, or of
            none; what is no number.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape:
        raise ValueError(f"key must be one typed key, as jax.random.key(0) makes it, got {key!r}.")
    names, found = seed_numbers(seeds), points(experiment, grid)
    hypers = tuple({**experiment.hyper, **dict(zip(grid, point, strict=True))} for point in found)
    for hyper in hypers:
        check_numbers(hyper)
    each = [hyper for hyper in hypers for _ in names]
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack([np.asarray(leaf) for leaf in leaves])), *each)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.array(names * len(found), jnp.uint32))
    return Lanes(found, names, hypers, stacked, keys)


def check_numbers(hyper: Hyper) -> None:
    """Raise where `hyper` holds what cannot be traced.

    Raises:
        ValueError: a name that is no string; words, or another thing that is no number.
    """
    for name, value in hyper.items():
        if not isinstance(name, str):
            raise ValueError(f"Names in hyper must be strings, got {name!r}.")
        kinds = [np.asarray(leaf).dtype for leaf in jax.tree.leaves(value)]
        if not all(jnp.issubdtype(kind, np.number) or kind == np.bool_ for kind in kinds):
            raise ValueError(
                f"hyper holds numbers, got {value!r} for {name!r}. Choose by words where learner or optimizer is made."
            )


def filled(lanes: Lanes, multiple: int) -> Lanes:
    """The last lane repeated until their number is a multiple of this."""
    spare = -lanes.used % multiple
    if spare == 0:
        return lanes
    fill = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], spare, axis=0)])
    return lanes._replace(hyper=jax.tree.map(fill, lanes.hyper), keys=fill(lanes.keys))


def points(experiment: Experiment, grid: Grid) -> tuple[tuple[Any, ...], ...]:
    """Every combination of the grid's values, the last name's changing fastest; one empty point for an empty grid."""
    for name, values in grid.items():
        if name not in experiment.hyper:
            held = ", ".join(experiment.hyper) or "none"
            raise ValueError(f"A grid runs over numbers in the experiment's hyper ({held}), got {name!r}.")
        if len(values) == 0:
            raise ValueError(f"The grid needs at least one value of {name}, got none.")
    return tuple(itertools.product(*grid.values()))


def seed_numbers(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds by number: 0, 1, … for how many, or those that are named.

    Raises:
        ValueError: none, more than `SEEDS_MOST`, the same twice, or what is no whole number from 0 below 2³².
    """
    names = _listed(seeds)
    if names[SEEDS_MOST:]:
        raise ValueError(f"seeds must be at most {SEEDS_MOST:,} nets in one run. Split them over several runs.")
    if not names or not all(_is_whole(s) and 0 <= s < 2**32 for s in names) or len(set(names)) < len(names):
        raise ValueError(f"seeds must be a positive number, or different whole numbers from 0, got {seeds!r}.")
    return tuple(int(s) for s in names)


def _listed(given: Any) -> Sequence[Any]:
    """What is given as a sequence, which is empty for what is none."""
    if _is_whole(given):
        return range(given)
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else ()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
