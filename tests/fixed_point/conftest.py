"""Small networks with known properties, in the working precision of the test."""

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture
def network():
    """A tanh network of eight units that contracts: args (W, b) and the map f(args, z)."""
    w_key, b_key = jax.random.split(jax.random.key(7))
    w = jax.random.normal(w_key, (8, 8)) * (0.6 / 8**0.5)
    args = (w, jax.random.normal(b_key, (8,)))
    return args, lambda a, z: jnp.tanh(a[0] @ z + a[1])
