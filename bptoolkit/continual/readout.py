"""Which weights of a model lead to its outputs."""

import jax
import jax.numpy as jnp

from bptoolkit.types import Key, Model, Params, PyTree

__all__ = ["readout"]


def readout(model: Model, params: Params, key: Key) -> PyTree:
    """True for the weights that lead to the outputs: those of the last layer, or of a cell's readout.

    Raises:
        ValueError: a model that shows neither layers nor a cell.
    """
    if model.layers is not None:
        last = len(model.layers) - 1
        return tuple(jax.tree.map(lambda w, n=n: jnp.full(w.shape, n == last), p) for n, p in enumerate(params))
    if model.cell is None:
        raise ValueError(
            "A model with layers or a cell is needed, to know what its readout is, got one with neither.\n"
            "Build it with models.mlp, models.convnet or models.equilibrium."
        )
    cell = model.cell
    keys = iter(jax.random.split(key, len(jax.tree.leaves(cell.state))))
    state = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype), cell.state)
    used = jax.jacrev(cell.readout)(params, state)  # a weight that is not read has no derivative at a random state
    return jax.tree.map(lambda j: jnp.any(j != 0, axis=0), used)
