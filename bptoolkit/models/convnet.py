"""Strided convolutions, then dense layers: a_ijc = Σ_{p,q,d} w_pqdc · h_{is+p, js+q, d} + b_c.

A convolution is written as one matrix product of the image's patches.  Over many seeds, each with weights of its own,
that stays one batched product, where `lax.conv` falls back to slow grouped convolutions on a CPU (6 times slower at
28 × 28, 10 seeds).
"""

from collections.abc import Callable
from itertools import pairwise
from math import prod

import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit.models.activations import Elementwise, check_activation, identity, relu
from bptoolkit.models.mlp import Initializer, check_sizes, dense, feed_forward, init_layer, uniform_fan_in
from bptoolkit.types import Layer, Model, Params

__all__ = ["convnet", "convolution", "patches"]


def convnet(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: tuple[int, ...] = (16, 32),
    hidden: tuple[int, ...] = (),
    kernel: int = 3,
    stride: int = 2,
    activation: Elementwise = relu,
    init: Initializer | None = None,
) -> Model:
    """Convolutions of the given channels, then dense layers: convnet((28, 28), 10).

    Every convolution is padded with zeros and divides height and width by `stride`, rounded up.

    Args:
        shape: of one image, (height, width) or (height, width, colours); `apply` also takes it flat.
        outputs: their number.
        channels: of each convolution.
        hidden: units of each dense layer before the outputs.
        kernel: height and width of each convolution's window.
        stride: step between two windows.
        activation: of every layer but the last, elementwise.
        init: as in `mlp`; weights are (kernel, kernel, channels in, channels out).

    Raises:
        ValueError: a shape of other than two or three axes, a size below one, an activation that is
            no function, or (from `apply`) another image.
    """
    if not isinstance(shape, tuple | list) or len(shape) not in (2, 3):
        raise ValueError(f"convnet needs a shape (height, width) or (height, width, colours), got {shape}.")
    for name, sizes in {"channels": channels, "hidden": hidden}.items():
        if not isinstance(sizes, tuple | list):
            raise ValueError(f"{name} must be a tuple of sizes, one a layer, got {sizes!r}. Write ({sizes},) for one.")
    check_activation(activation)
    check_sizes("convnet", (*shape, outputs, *channels, *hidden, kernel, stride))
    draw = uniform_fan_in if init is None else init
    image = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)

    layers, inits = [], []
    for c in channels:
        fan_in = kernel * kernel * image[2]
        layers.append(Layer(convolution(image, stride), activation))
        inits.append(init_layer(draw, (kernel, kernel, image[2], c), fan_in))
        image = (-(-image[0] // stride), -(-image[1] // stride), c)
    sizes = (prod(image), *hidden, outputs)
    for fan_in, fan_out in pairwise(sizes):
        layers.append(Layer(dense, activation, dense=True))
        inits.append(init_layer(draw, (fan_in, fan_out), fan_in))
    layers[-1] = layers[-1]._replace(activation=identity)
    return feed_forward(tuple(layers), tuple(inits))


def convolution(image: tuple[int, int, int], stride: int) -> Callable[[Params, Float[Array, "..."]], Array]:
    """The linear part of a layer that takes images of that shape (height, width, channels)."""

    def linear(params: Params, h: Float[Array, "..."]) -> Float[Array, "i j c"]:
        if h.shape not in (image, image[:2] if image[2] == 1 else image, (prod(image),)):
            raise ValueError(
                f"The layer takes one image of shape {image} (or flat), got shape {h.shape}.\n"
                "Give height, width, channels in that order; a batch goes through jax.vmap(model.apply, (None, 0))."
            )
        w = params["w"]
        return patches(h.reshape(image), w.shape[0], stride) @ w.reshape(-1, w.shape[-1]) + params["b"]

    return linear


def patches(h: Float[Array, "height width d"], kernel: int, stride: int) -> Float[Array, "i j n"]:
    """The window under each output, flattened (row, column, channel); n = kernel² d, zeros beyond the border."""
    spans, border = [], []
    for size in h.shape[:2]:
        count = -(-size // stride)
        lack = max((count - 1) * stride + kernel - size, 0)
        spans.append((count - 1) * stride + 1)
        border.append((lack // 2, lack - lack // 2))
    h = jnp.pad(h, (*border, (0, 0)))
    window = [(p, q) for p in range(kernel) for q in range(kernel)]
    return jnp.concatenate([h[p : p + spans[0] : stride, q : q + spans[1] : stride] for p, q in window], axis=-1)
