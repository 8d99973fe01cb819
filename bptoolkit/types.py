"""Words shared by every layer: rows of data, a model, a cell, and what a model reports beside its output.

Nothing here computes.  A model is a pair of pure functions of ONE example; batches are made by `jax.vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped

Key: TypeAlias = jax.Array  # a typed PRNG key, as `jax.random.key` makes it
PyTree: TypeAlias = Any
Params: TypeAlias = PyTree  # a model's weights
State: TypeAlias = PyTree  # what a cell settles
Memory: TypeAlias = PyTree  # what a learner or a solver carries from step to step


class Rows(NamedTuple):
    """Examples as stored: pixels stay uint8 until they are gathered."""

    x: Shaped[Array, "n *d"]  # one example a row, of any shape
    y: Shaped[Array, "n *k"]  # class numbers 0 … classes − 1, or vectors to regress on


class Dataset(NamedTuple):
    """Two sets of rows, and how to read them: a gathered example is `x / scale`."""

    train: Rows
    test: Rows
    classes: int  # how many there are, also where rows of some are missing
    scale: float = 1.0  # that x is divided by
    name: str = ""  # may be empty


class Batch(NamedTuple):
    """Rows that carry all that their loss needs, so that a strategy can add rows of its own."""

    x: Float[Array, "b *d"]  # as the model reads them
    target: Float[Array, "b k"]  # one-hot, soft, or a vector to regress on
    active: Bool[Array, "b k"]  # outputs that loss and argmax may see
    weight: Float[Array, "b"]  # 0 for padding
    temperature: Float[Array, "b"]  # of the softmax, for distillation; ∞ where target holds logits to be matched
    task: Int[Array, "b"]  # from 0
    index: Int[Array, "b"]  # row in the data set: buffers and warm starts are keyed by it


class Settling(NamedTuple):
    """How one relaxation ended, without its state; one number each, or one per row under `vmap`."""

    steps: Int[Array, "*b"]  # updates made
    residual: Float[Array, "*b"]  # norm of z − f(z)
    rate: Float[Array, "*b"]  # estimated contraction per step
    status: Int[Array, "*b"]  # a `fixed_point.Status`


class Info(NamedTuple):
    """What a model or a learner reports beside its result; None where there is nothing to report."""

    loss: Float[Array, "*b"] | None = None
    forward: Settling | None = None  # of the states
    backward: Settling | None = None  # of the adjoints
    weight: Float[Array, "*b"] | None = None  # of the rows that forward and backward tell of


class Layer(NamedTuple):
    """One layer of a feed-forward model: h = activation(a), a = linear(params, h of the layer below).

    `dense` says that a = ravel(h) @ params["w"] + params["b"], which some rules and the fast Fisher rely on.
    """

    linear: Callable[[Params, Float[Array, "..."]], Float[Array, "..."]]
    activation: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    dense: bool = False


class Cell(NamedTuple):
    """A recurrent network before it is settled: the map whose fixed point z* = step(params, x, z*) is its state.

    All functions are of ONE example.  Only the first four fields are needed; what the others offer is used where it is.
    """

    init: Callable[[Key], Params]
    step: Callable[[Params, Float[Array, "*d"], State], State]
    readout: Callable[[Params, State], Float[Array, "k"]]  # z* -> logits
    state: State  # shapes and dtypes of z, as `jax.ShapeDtypeStruct`s
    energy: Callable[[Params, Float[Array, "*d"], State], Float[Array, ""]] | None = None  # that settling lowers
    resolvent: Callable[..., Any] | None = None  # (params, x or current) -> fixed_point.Resolvent, for splitting
    # Where x enters by a current alone: step(params, x, z) = respond(params, drive(params, x), z).  The current is then
    # computed once per example, not once per settling step, and has an error of its own.
    drive: Callable[[Params, Float[Array, "*d"]], PyTree] | None = None
    respond: Callable[[Params, PyTree, State], State] | None = None
    # (params, source, target): weights times the gates of the unit they leave and of the unit they enter, (units,) each
    gates: Callable[[Params, Float[Array, "units"], Float[Array, "units"]], Params] | None = None
    settle: Callable[..., Any] | None = None  # filled by `equilibrium`: (params, x, probe=None) -> fixed_point.Solution


class Model(NamedTuple):
    """A pure network of one example.

    `layers` is the structure that some rules need (then params is a tuple, one entry a layer).  A model that settles
    has its `cell`; its `apply` then also takes `probe=`, through whose gradient the backward report comes out.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., tuple[Float[Array, "k"], Info]]  # apply(params, x)
    layers: tuple[Layer, ...] | None = None
    cell: Cell | None = None
