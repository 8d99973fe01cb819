"""Which rows a step sees: drawn with replacement, in epochs without, or all of them.

An epoch's order is a keyed bijection computed position by position, so nothing is sorted and nothing is stored: a
Feistel network on Z_a × Z_b with a·b barely above n, walked along its cycle until it lands below n.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from bptoolkit.types import Key

__all__ = ["positions", "shuffled"]

ROUNDS = 6


def positions(
    key: Key, step: Int[Array, ""], count: Int[Array, ""], batch: int, replacement: bool
) -> tuple[Int[Array, "batch"], Bool[Array, "batch"]]:
    """Positions in [0, count) for one step, and which of them count.

    Without replacement, epoch e is the steps e·⌊count/batch⌋ … and shows each row at most once; what does not fill a
    batch is left out, as in the published protocols.  A batch larger than the task shows every row once, and its
    spare places do not count.

    Args:
        key: the stage's key, the same for all its steps.
        step: from 0 within the stage.
        count: rows there are; may be traced.
        batch: rows a step.
        replacement: draw each row independently.
    """
    place = jnp.arange(batch, dtype=jnp.int32)
    if replacement:
        drawn = jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, jnp.maximum(count, 1), jnp.int32)
        return drawn, jnp.broadcast_to(count > 0, (batch,))
    steps = jnp.maximum(count // batch, 1)
    place = place + (step % steps) * batch
    order = shuffled(jax.random.fold_in(key, step // steps), jnp.minimum(place, count - 1), count)
    return order, place < count


def shuffled(key: Key, place: Int[Array, "b"], count: Int[Array, ""]) -> Int[Array, "b"]:
    """The images of places in [0, count) under a bijection of [0, count) that depends on the key.

    Few rows do not come in all orders equally often: over 100,000 keys a row of 5 stood in a place up to 7 % more or
    less often than in one of five, a row of 7 to 10 up to 4 %; of 12 and more no difference was seen.

    Reference: Black & Rogaway (2002), CT-RSA, "Ciphers with arbitrary finite domains".
    """
    whole = lambda value: value.astype(jnp.uint32)
    n = jnp.maximum(count, 1)
    a = whole(jnp.ceil(jnp.sqrt(n.astype(jnp.float32))))
    b = (whole(n) + a - 1) // a
    salts = jax.random.bits(key, (ROUNDS,), jnp.uint32)

    def once(value):
        left, right = value // b, value % b
        for i in range(0, ROUNDS, 2):
            left = (left + _mix(right + salts[i]) % a) % a
            right = (right + _mix(left + salts[i + 1]) % b) % b
        return left * b + right

    outside = lambda value: value >= whole(n)
    walked = lax.while_loop(
        lambda value: jnp.any(outside(value)),
        lambda value: jnp.where(outside(value), once(value), value),
        once(whole(place)),
    )
    return walked.astype(jnp.int32)


def _mix(value: Int[Array, "b"]) -> Int[Array, "b"]:
    """A hash of 32 bits with full avalanche: multiply, fold, twice."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x7FEB352D)
    value = (value ^ (value >> 15)) * jnp.uint32(0x846CA68B)
    return value ^ (value >> 16)
