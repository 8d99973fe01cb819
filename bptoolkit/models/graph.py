"""The graph neural network: the states of a graph's nodes settle by messages along its edges.

    z_n = Σ_{u → n} A_{un} z_u + b_n,     A_{un} = μ/(s |out(u)|) · tanh φ(x_u, x_n),     b_n = ρ(x_n)

for states of s numbers, features x of the nodes and learnt networks φ and ρ.  However they are trained, the sum of
the |A| that leave one number is at most μ < 1: a contraction in the 1-norm, with one fixed point.

Reference: Scarselli, Gori, Tsoi, Hagenbuchner & Monfardini (2009), IEEE Transactions on Neural Networks 20, sec. II-D,
"linear GNN"; there the readout sees the features too.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from bptoolkit.counts import fails
from bptoolkit.models.activations import tanh
from bptoolkit.models.mlp import check_sizes, mlp, uniform_fan_in
from bptoolkit.types import Cell, Key, Params

__all__ = ["graph_cell"]


def graph_cell(
    adjacency: ArrayLike,
    features: int,
    units: int,
    outputs: int,
    *,
    hidden: int = 10,
    bound: float = 0.9,
    pooled: bool = True,
) -> Cell:
    """Settle `units` states a node of a fixed graph, from one (nodes, features) array of node features.

    φ and ρ are `mlp`s with one hidden layer of tanh units.  The drive is the pair of A, one (units, units) matrix an
    edge, and b, one row a node; both are computed once per example, and the step itself is linear.

    Parameters: {"transition": those of φ, "forcing": those of ρ, "v": (units, outputs), "c": (outputs,)}.

    Args:
        adjacency: (nodes, nodes); an edge leads from i to j where [i, j] is not zero.  Symmetric if neighbours hear
            each other.  It belongs to the cell: values that are traced are refused.
        features, units: numbers a node, of its features and of its state.
        outputs: their number, for the graph or for each node.
        hidden: units of the hidden layers of φ and ρ.
        bound: μ, the contraction in the 1-norm over all states, in (0, 1); may be traced.
        pooled: one output vector from the mean of all states; if False one a node, (nodes · outputs,), node by node.

    Raises:
        ValueError: an adjacency that is not square or not finite, a size below one, a bound outside (0, 1), or (from
            the drive) features of another size.
        jax.errors.TracerArrayConversionError: a traced adjacency.
    """
    edges = np.asarray(adjacency)
    if edges.ndim != 2 or edges.shape[0] != edges.shape[1]:
        raise ValueError(f"adjacency must be square, (nodes, nodes), got shape {edges.shape}. Give one row a node.")
    nodes = len(edges)
    check_sizes("graph_cell", (nodes, features, units, outputs, hidden))
    if not (np.issubdtype(edges.dtype, np.number) or edges.dtype == bool) or not np.isfinite(edges).all():
        raise ValueError("adjacency must be finite numbers, got others. Write 0 where there is no edge.")
    if fails(lambda number: (number > 0) & (number < 1), bound):
        raise ValueError(f"bound must be in (0, 1), got {bound}. Below 1 the states settle whatever the weights.")
    receiver, sender = np.nonzero(edges.T)  # sorted by receiver, which is what is summed over
    leaving = np.bincount(sender, minlength=nodes)[sender]
    phi = mlp(2 * features, hidden, units * units, activation=tanh)
    rho = mlp(features, hidden, units, activation=tanh)

    def init(key: Key) -> Params:
        transition, forcing, v, c = jax.random.split(key, 4)
        return {
            "transition": phi.init(transition),
            "forcing": rho.init(forcing),
            "v": uniform_fan_in(v, (units, outputs), units),
            "c": uniform_fan_in(c, (outputs,), units),
        }

    def drive(params: Params, x: Float[Array, "*d"]) -> tuple[Float[Array, "e s s"], Float[Array, "n s"]]:
        x = _nodewise(x, nodes, features)
        ends = jnp.concatenate([x[sender], x[receiver]], axis=-1)
        raw = jax.vmap(lambda pair: phi.apply(params["transition"], pair)[0])(ends)
        share = jnp.asarray(bound, raw.dtype) / jnp.asarray(units * leaving, raw.dtype)
        a = share[:, None, None] * jnp.tanh(raw).reshape(-1, units, units)
        return a, jax.vmap(lambda row: rho.apply(params["forcing"], row)[0])(x)

    def respond(params: Params, current: tuple, z: Float[Array, "n s"]) -> Float[Array, "n s"]:
        del params
        a, b = current
        messages = jnp.einsum("es,est->et", z[sender], a)
        return b + jax.ops.segment_sum(messages, receiver, nodes, indices_are_sorted=True)

    def readout(params: Params, z: Float[Array, "n s"]) -> Float[Array, "k"]:
        read = jnp.mean(z, axis=0) if pooled else z
        return jnp.ravel(read @ params["v"] + params["c"])

    step = lambda params, x, z: respond(params, drive(params, x), z)
    state = jax.ShapeDtypeStruct((nodes, units), jnp.result_type(float))
    return Cell(init, step, readout, state, drive=drive, respond=respond)


def _nodewise(x: Float[Array, "*d"], nodes: int, features: int) -> Float[Array, "nodes features"]:
    if x.size != nodes * features:
        raise ValueError(
            f"The graph takes features of shape ({nodes}, {features}) (or flat), got shape {x.shape}.\n"
            "Give one row a node, in the order of the adjacency; a batch goes through jax.vmap."
        )
    return x.reshape(nodes, features)
