"""Feed-forward networks: h_l = g(a_l), a_l = Σ weight · input + bias, h_0 = x.

Reference: Rumelhart, Hinton & Williams (1986), Nature 323, eqs. (1) and (2).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bptoolkit.models.activations import Elementwise, check_activation, identity, relu
from bptoolkit.types import Info, Key, Layer, Model, Params

__all__ = ["Initializer", "dense", "feed_forward", "init_layer", "mlp", "uniform_fan_in"]

Initializer: TypeAlias = Callable[[Key, tuple[int, ...], int], Array]  # key, shape, fan_in


def mlp(*sizes: int, activation: Elementwise = relu, init: Initializer | None = None) -> Model:
    """Dense layers of the given sizes: mlp(64, 100, 10) is 64 inputs, 100 hidden units, 10 outputs.

    The input is flattened.  The last layer is linear.  Parameters: one {"w": (in, out), "b": (out,)} a layer.

    Args:
        sizes: numbers of inputs, of the units of each hidden layer, and of outputs.
        activation: of the hidden layers, elementwise.
        init: draws weights and biases alike; `uniform_fan_in` if left out.

    Raises:
        ValueError: fewer than two sizes, a size below one, an activation that is no function, or (from `apply`) an
            input of another size.
    """
    check_activation(activation)
    check_sizes("mlp", sizes)
    if len(sizes) < 2:
        raise ValueError(f"mlp needs the sizes of input and output, got {sizes}. Write for example mlp(64, 100, 10).")
    draw = uniform_fan_in if init is None else init
    pairs = list(pairwise(sizes))
    return feed_forward(
        tuple(Layer(dense, g, dense=True) for g in [activation] * (len(pairs) - 1) + [identity]),
        tuple(init_layer(draw, (fan_in, fan_out), fan_in) for fan_in, fan_out in pairs),
    )


def feed_forward(layers: tuple[Layer, ...], inits: tuple[Callable[[Key], Params], ...]) -> Model:
    """The model of a stack of layers, whose params are a tuple with one entry a layer."""

    def init(key: Key) -> Params:
        return tuple(draw(k) for draw, k in zip(inits, jax.random.split(key, len(inits)), strict=True))

    def apply(params: Params, x: Float[Array, "*d"]) -> tuple[Float[Array, "k"], Info]:
        h = x
        for layer, p in zip(layers, params, strict=True):
            h = layer.activation(layer.linear(p, h))
        return h, Info()

    return Model(init, apply, layers)


def dense(params: Params, h: Float[Array, "..."]) -> Float[Array, "out"]:
    """a_j = Σ_i h_i w_ij + b_j, with h flattened.

    Raises:
        ValueError: h has another size than the layer has inputs.
    """
    w = params["w"]
    if h.size != w.shape[0]:
        raise ValueError(
            f"The layer takes one example of {w.shape[0]} numbers, got shape {h.shape}, {h.size} numbers.\n"
            "Give one example of that size; a batch goes through jax.vmap(model.apply, in_axes=(None, 0))."
        )
    return jnp.ravel(h) @ w + params["b"]


def init_layer(draw: Initializer, shape: tuple[int, ...], fan_in: int) -> Callable[[Key], Params]:
    """The init of one layer: weights of the given shape, one bias for each of its outputs (the last axis)."""

    def init(key: Key) -> Params:
        key_w, key_b = jax.random.split(key)
        return {"w": draw(key_w, shape, fan_in), "b": draw(key_b, shape[-1:], fan_in)}

    return init


def uniform_fan_in(key: Key, shape: tuple[int, ...], fan_in: int) -> Float[Array, "..."]:
    """Uniform in ±1/√fan_in, weights and biases alike, in the default float type.

    It is what torch.nn.Linear does, and so the protocol of van de Ven, Tuytelaars & Tolias (2022), Nature Machine
    Intelligence 4.  The weights have a variance of 1/(3 fan_in).

    Args:
        key: a typed PRNG key.
        shape: of the array that is drawn.
        fan_in: numbers that enter one unit.
    """
    return jax.random.uniform(key, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)


def check_sizes(name: str, sizes: tuple[int, ...]) -> None:
    """Raise unless every size is a positive integer."""
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} needs sizes of one or more, as integers, got {size!r} in {sizes}.")
