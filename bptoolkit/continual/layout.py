"""How nets lie on devices: a mesh with an axis "seed" (whole nets) and an axis "data" (the rows of a batch).

Nets are independent, so nothing is exchanged along "seed" but the reports.  Along "data" each device sees its share of
the rows, and gradients are summed over it.  The devices may belong to several processes (`jax.distributed`): then each
process runs the same program, and what it is handed and what it reports is the same in each.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bptoolkit.types import Batch, PyTree

__all__ = ["Layout", "choose_layout", "fetch", "mesh_of", "place", "split_rows"]

T = TypeVar("T")
LARGE = 2**16  # weights beyond which one net's products fill a core by themselves
SEED, WHOLE = PartitionSpec("seed"), PartitionSpec()


class Layout(NamedTuple):
    """How nets lie on devices; what is None is left to `choose_layout`."""

    devices: int | None = None  # that nets are shared out to: the mesh's axis "seed"
    stacked: bool | None = None  # on each of them by vmap, else one after the other
    data: int = 1  # devices that split the rows of every batch: the mesh's axis "data"

    def __str__(self) -> str:
        """For the record."""
        devices = f"{self.devices} device{'s' * (self.devices != 1)}"
        mesh = devices if self.data == 1 else f"{self.devices} × {self.data} devices"
        return f"{mesh}, seeds {'stacked' if self.stacked else 'in turn'}"


def choose_layout(seeds: int, devices: int, weights: int, settles: bool, wish: Layout = Layout()) -> Layout:
    """Share nets out to all devices; on each, stack small feed-forward nets and do all others in turn.

    Stacking saves the overhead of small operations.  Large nets have none to save, and nets that settle would all
    wait for the slowest seed.  (Figures: `scripts/bench_forgetting.py`.)

    Args:
        seeds: nets that are trained at once.
        devices: that there are.
        weights: of one net.
        settles: whether it relaxes to a fixed point.
        wish: what is given in it is kept.

    Raises:
        ValueError: a wish for no devices, or for more than there are.
    """
    stacked = weights < LARGE and not settles if wish.stacked is None else wish.stacked
    chosen = max(1, min(seeds, devices // max(wish.data, 1))) if wish.devices is None else wish.devices
    if chosen < 1 or wish.data < 1 or chosen * wish.data > devices:
        raise ValueError(
            f"A mesh (seed × data) needs at least one device each way, and no more than the {devices} that there are; "
            f"got {chosen} × {wish.data}. Ask for a smaller mesh, or give more devices."
        )
    return Layout(chosen, stacked, wish.data)


def mesh_of(layout: Layout) -> Mesh:
    """The first devices of all processes as (seed, data)."""
    shape = (layout.devices or 1, layout.data)
    return Mesh(np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("seed", "data"))


def place(tree: T, mesh: Mesh, spec: PartitionSpec) -> T:
    """The same values, which every process holds, laid out over the mesh."""
    sharding = NamedSharding(mesh, spec)

    def one(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        held = np.asarray(leaf)
        return jax.make_array_from_callback(held.shape, sharding, lambda index: held[index])

    return jax.tree.map(one, tree)


def fetch(tree: T) -> T:
    """The same values where this process can read all of them: as they are, or gathered from the other processes.

    Leaves of one dtype are gathered in one exchange, which ends before the next one starts.
    """
    leaves, structure = jax.tree.flatten(tree)
    far = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array) and not _is_near(leaf)}
    keys = {i: leaf for i, leaf in far.items() if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)}
    plain = far | {i: jax.random.key_data(leaf) for i, leaf in keys.items()}
    for dtype in dict.fromkeys(leaf.dtype for leaf in plain.values()):  # no set: all processes in one order
        same = {i: leaf for i, leaf in plain.items() if leaf.dtype == dtype}
        rows = process_allgather(_side_by_side(list(same.values())), tiled=True)
        widths = [leaf.size // len(leaf) for leaf in same.values()]
        pieces = np.split(rows, np.cumsum(widths)[:-1], axis=1)
        for (i, leaf), piece in zip(same.items(), pieces, strict=True):
            leaves[i] = piece.reshape(leaf.shape)
    for i, leaf in keys.items():
        leaves[i] = jax.random.wrap_key_data(leaves[i], impl=jax.random.key_impl(leaf))
    return jax.tree.unflatten(structure, leaves)


def _is_near(leaf: jax.Array) -> bool:
    return leaf.is_fully_addressable or leaf.is_fully_replicated


@jax.jit
def _side_by_side(leaves: list[jax.Array]) -> jax.Array:
    """Arrays with a leading axis of nets as one row for each net."""
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def split_rows(batch: Batch, layout: Layout) -> Batch:
    """The rows of a batch over the axis "data", where they divide evenly; else each device sees them all."""
    if layout.data == 1 or batch.weight.shape[0] % layout.data:
        return batch
    return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, PartitionSpec("data")), batch)


def over_lanes(function, lanes: int, layout: Layout, mesh: Mesh):
    """The function of one net, over a leading axis of nets in its first `lanes` arguments; the others are shared."""

    def on_one_device(*arguments: PyTree) -> PyTree:
        own, shared = arguments[:lanes], arguments[lanes:]
        one = lambda lane: function(*lane, *shared)
        return jax.vmap(one)(own) if layout.stacked else lax.map(one, own)

    if mesh.size == 1:
        return on_one_device

    def on_all(*arguments: PyTree) -> PyTree:
        specs = tuple(SEED if i < lanes else WHOLE for i in range(len(arguments)))
        mapped = jax.shard_map(
            on_one_device, mesh=mesh, in_specs=specs, out_specs=SEED, axis_names={"seed"}, check_vma=False
        )
        return mapped(*arguments)

    return on_all
