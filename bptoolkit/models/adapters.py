"""Flax modules, NNX or Linen, as models or as the step of a cell: everything that knows Flax is in this file.

Parameters become plain nested dicts.  Flax modules broadcast over leading axes, so they serve one example as they are.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit import trees
from bptoolkit.types import Cell, Info, Key, Model, Params, PyTree, State

if TYPE_CHECKING:  # importing Flax takes a second: only those who bring a module pay for it
    from flax import linen, nnx

__all__ = ["cell_from_linen", "cell_from_nnx", "from_linen", "from_nnx"]

STATELESS = (
    "Only stateless modules can be a pure function of parameters and input: take LayerNorm or GroupNorm for BatchNorm, "
    "and leave Dropout out."
)


def from_nnx(factory: "Callable[..., nnx.Module]") -> Model:
    """The model of an NNX module: from_nnx(Net) or from_nnx(lambda rngs: Net(64, 10, rngs=rngs)).

    Args:
        factory: takes `nnx.Rngs` and returns a module that maps one example onto its logits.  It is a factory and not
            a module because every seed draws parameters of its own.

    Raises:
        TypeError: a module in place of a factory, or something else than a factory of modules.
        ValueError: a module with state beside its parameters, such as running statistics or random streams.
    """
    init, call = _pure_nnx(factory)
    return Model(init, lambda params, x: (call(params, x), Info()))


def from_linen(module: "linen.Module", example: Float[Array, "*d"]) -> Model:
    """The model of a Linen module: from_linen(Net(), jnp.zeros(64)).

    Args:
        module: maps one example onto its logits.
        example: of the shape and dtype of one input; its values are not looked at.

    Raises:
        TypeError: no Linen module.
        ValueError: a module with variables beside "params", or one that needs a random stream to be applied.
    """
    init, call = _pure_linen(module, example)
    return Model(init, lambda params, x: (call(params, x), Info()))


def cell_from_nnx(
    step: "Callable[..., nnx.Module]", state: State, readout: "Callable[..., nnx.Module] | None" = None
) -> Cell:
    """The cell whose step is an NNX module called as module(x, z), and its readout one called as module(z).

    Args:
        step: factory of the module of the step, as in `from_nnx`.
        state: array or `jax.ShapeDtypeStruct` (or a tree of them) of the shape and dtype of z.
        readout: factory of the module of the readout; the state itself, flattened, if left out.

    Raises:
        TypeError, ValueError: as in `from_nnx`; a state of numbers that are not floating.
    """
    return _cell(_pure_nnx(step), state, None if readout is None else _pure_nnx(readout))


def cell_from_linen(
    step: "linen.Module", example: Float[Array, "*d"], state: State, readout: "linen.Module | None" = None
) -> Cell:
    """The cell whose step is a Linen module called as module(x, z), and its readout one called as module(z).

    Args:
        step: the module of the step.
        example: of the shape and dtype of one input x.
        state: array or `jax.ShapeDtypeStruct` (or a tree of them) of the shape and dtype of z.
        readout: the module of the readout; the state itself, flattened, if left out.

    Raises:
        TypeError, ValueError: as in `from_linen`; a state of numbers that are not floating.
    """
    return _cell(_pure_linen(step, example, state), state, None if readout is None else _pure_linen(readout, state))


Pure = tuple[Callable[[Key], Params], Callable[..., Any]]  # init(key) -> params, call(params, *inputs)


def _cell(step: Pure, state: State, readout: Pure | None) -> Cell:
    """A cell with parameters {"step": …, "readout": …}."""
    shapes = _shapes(state)
    for leaf in jax.tree.leaves(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"state must be arrays of floating numbers, or their shapes, got {leaf.dtype} of shape {leaf.shape}.\n"
                "Write jax.ShapeDtypeStruct((units,), float), or jnp.zeros(units)."
            )

    def init(key: Key) -> Params:
        key_step, key_readout = jax.random.split(key)
        return {"step": step[0](key_step), "readout": {} if readout is None else readout[0](key_readout)}

    def read(params: Params, z: State) -> Float[Array, "k"]:
        if readout is None:
            return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(z)])
        return readout[1](params["readout"], z)

    return Cell(init, lambda params, x, z: step[1](params["step"], x, z), read, shapes)


def _pure_nnx(factory: "Callable[..., nnx.Module]") -> Pure:
    """Split a module into its graph, which is fixed, and its parameters."""
    from flax import nnx

    if not callable(factory):
        raise TypeError(
            f"Required: a factory that takes nnx.Rngs and returns a module; got {type(factory).__name__}.\n"
            "Give the module's class, or a function that makes it."
        )
    if isinstance(factory, nnx.Module):
        name = type(factory).__name__
        raise TypeError(
            f"Required: a factory that takes nnx.Rngs and returns a module; got a {name} that is already built.\n"
            f"Every seed draws its own parameters: write lambda rngs: {name}(..., rngs=rngs)."
        )

    def build(rngs: nnx.Rngs) -> nnx.Module:
        takes = factory.__init__ if inspect.isclass(factory) else factory
        by_name = "rngs" in inspect.signature(takes).parameters
        module = factory(rngs=rngs) if by_name else factory(rngs)
        if not isinstance(module, nnx.Module):
            raise TypeError(f"Required: a factory that returns an nnx.Module; got one of {type(module).__name__}.")
        return module

    graph, shapes, rest = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param, ...)
    extra = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)]
    if extra:
        raise ValueError(f"The NNX module has state beside its parameters: {', '.join(extra)}.\n{STATELESS}")

    def init(key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

    def call(params: Params, *inputs: PyTree) -> Any:
        state = jax.tree.map(lambda leaf: leaf, shapes)  # a copy: the next line writes into it
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(*inputs)

    return init, call


def _pure_linen(module: "linen.Module", *examples: PyTree) -> Pure:
    """A module's init and apply, with the collection "params" as the parameters."""
    from flax import errors, linen

    if not isinstance(module, linen.Module):
        named = getattr(module, "__name__", type(module).__name__)
        raise TypeError(f"Required: a Linen module, such as Net(); got {named}.")
    zeros = [trees.zeros_like(_shapes(example)) for example in examples]

    def call(params: Params, *inputs: PyTree) -> Any:
        return module.apply({"params": params}, *inputs)

    variables = jax.eval_shape(module.init, jax.random.key(0), *zeros)
    extra = sorted(set(variables) - {"params"})
    if extra:
        raise ValueError(f"The Linen module has variables beside its parameters: {', '.join(extra)}.\n{STATELESS}")
    try:
        jax.eval_shape(call, variables.get("params", {}), *zeros)
    except errors.InvalidRngError as error:
        raise ValueError(f"The Linen module needs a random stream to be applied.\n{STATELESS}") from error

    return lambda key: module.init(key, *zeros).get("params", {}), call


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)
