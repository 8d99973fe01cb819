"""A convolutional equilibrium network: z = g(W ∗ z + U ∗ x + b), an image of states read through its local means.

Reference: Bai, Koltun & Kolter (2020), NeurIPS, "Multiscale deep equilibrium models", of which this is one scale.
"""

from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit.counts import fails, positive
from bptoolkit.models.activations import Elementwise, check_activation, steepest, tanh
from bptoolkit.models.convnet import convolution, patches
from bptoolkit.models.mlp import check_sizes, dense, uniform_fan_in
from bptoolkit.types import Cell, Key, Params

__all__ = ["conv_cell"]


def conv_cell(
    shape: tuple[int, ...],
    channels: int,
    outputs: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    pool: int | None = None,
    activation: Elementwise = tanh,
    gain: float = 0.5,
) -> Cell:
    """Settle an image of `channels` states a pixel: conv_cell((28, 28), 16, 10, stride=2, pool=7).

    The input comes in by a convolution that divides height and width by `stride`, rounded up; the states are convolved
    at stride 1; both are padded with zeros.  So the states move with the image, away from the border.

    The kernel W, as a matrix (kernel² channels, channels), starts with orthonormal columns times
    gain / (kernel · max |g′|).  A state stands in at most kernel² windows, so that the windows together are at most
    `kernel` times as long as the states, and every step contracts by `gain` at least.  Training may undo it: watch
    `Settling.status`.

    Parameters: {"w": (kernel, kernel, channels, channels), "u": (kernel, kernel, colours, channels), "b": (channels,),
    "v": (windows · channels, outputs), "c": (outputs,)}.

    Args:
        shape: of one image, (height, width) or (height, width, colours); the input may also come flat.
        channels: states a pixel.
        outputs: their number.
        kernel: height and width of both convolutions' windows.
        stride: step between two windows on the input.
        pool: height and width of the windows whose means are read; the whole image if left out.
        activation: g, elementwise.
        gain: Lipschitz constant of the step at the start; below 1 for a unique fixed point.

    Raises:
        ValueError: a shape of other than two or three axes, a size below one, a gain that is not positive, an
            activation that is no function, a pool that does not divide height and width of the state, or (from the
            step) another image.
    """
    if not isinstance(shape, tuple | list) or len(shape) not in (2, 3):
        raise ValueError(f"conv_cell needs a shape (height, width) or (height, width, colours), got {shape}.")
    check_activation(activation)
    check_sizes("conv_cell", (*shape, channels, outputs, kernel, stride, *(() if pool is None else (pool,))))
    if fails(positive, gain):
        raise ValueError(f"gain must be positive and finite, got {gain}. Below 1 the network settles from any state.")
    height, width, colours = (*shape, 1)[:3]
    rows, columns = -(-height // stride), -(-width // stride)
    window = (rows, columns) if pool is None else (pool, pool)
    if rows % window[0] or columns % window[1]:
        raise ValueError(f"pool must divide height and width of the state, {rows} and {columns}, got {pool}.")
    count = prod((rows // window[0], columns // window[1]))
    inject = convolution((height, width, colours), stride)

    def init(key: Key) -> Params:
        w, u, b, v, c = jax.random.split(key, 5)
        drawn = jax.nn.initializers.orthogonal()(w, (kernel * kernel * channels, channels), jnp.result_type(float))
        drawn = drawn * jnp.asarray(gain / (kernel * steepest(activation)), drawn.dtype)
        fan_in = kernel * kernel * colours
        return {
            "w": drawn.reshape(kernel, kernel, channels, channels),
            "u": uniform_fan_in(u, (kernel, kernel, colours, channels), fan_in),
            "b": uniform_fan_in(b, (channels,), fan_in),
            "v": uniform_fan_in(v, (count * channels, outputs), count * channels),
            "c": uniform_fan_in(c, (outputs,), count * channels),
        }

    def respond(params: Params, current: Float[Array, "i j c"], z: Float[Array, "i j c"]) -> Float[Array, "i j c"]:
        return activation(patches(z, kernel, 1) @ params["w"].reshape(-1, channels) + current)

    drive = lambda params, x: inject({"w": params["u"], "b": params["b"]}, x)
    step = lambda params, x, z: respond(params, drive(params, x), z)
    readout = lambda params, z: dense({"w": params["v"], "b": params["c"]}, _means(z, window))
    state = jax.ShapeDtypeStruct((rows, columns, channels), jnp.result_type(float))
    return Cell(init, step, readout, state, drive=drive, respond=respond)


def _means(z: Float[Array, "i j c"], window: tuple[int, int]) -> Float[Array, "p q c"]:
    """The mean of each window, one beside the other without overlap."""
    (p, q), (rows, columns, channels) = window, z.shape
    return jnp.mean(z.reshape(rows // p, p, columns // q, q, channels), axis=(1, 3))
