"""First weights that several protocols share."""

import jax
import jax.numpy as jnp

from bptoolkit import models
from bptoolkit.types import Key, Model


def glorot(key: Key, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """Weights uniform in ±√(6/(fan_in + fan_out)), biases zero.  Reference: Glorot & Bengio (2010), AISTATS."""
    if len(shape) == 1:
        return jnp.zeros(shape)
    bound = (6 / (fan_in + shape[-1])) ** 0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def fan_in_uniform(key: Key, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """Weights uniform in ±1/√fan_in, biases zero."""
    if len(shape) == 1:
        return jnp.zeros(shape)
    return jax.random.uniform(key, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)


def small_net(outputs: int = 10) -> Model:
    """784-100-100-outputs with ReLU, of GEM's and DER's protocols."""
    return models.mlp(784, 100, 100, outputs, init=glorot)
