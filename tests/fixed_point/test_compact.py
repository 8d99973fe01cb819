"""Gathering the samples that are still on their way changes the cost, and results by rounding only."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import Status, almeida_pineda, anderson, broyden, chebyshev, damped, implicit, picard, solve
from bptoolkit.fixed_point.compact import until_all_end
from tests.fixed_point.methods import assert_apart_by_rounding

SOLVERS = {
    "picard": picard(),
    "damped": damped(0.3),
    "anderson": anderson(),
    "broyden": broyden(),
    "chebyshev": chebyshev(),
    "nothing said": None,
}
GAINS = jnp.linspace(0.05, 0.97, 11)  # an odd number, so that halves are uneven
W = jnp.array([[0.0, 0.6, 0.4], [0.7, 0.0, -0.3], [0.2, 0.5, 0.3]])


def network(args, z):
    gain, current = args
    return jnp.tanh(gain * (W @ z) + current)


def currents(n):
    return jnp.sin(jnp.arange(3.0 * n)).reshape(n, 3)


@pytest.mark.parametrize(("name", "smallest"), [*((name, 1) for name in SOLVERS), ("picard", 4)])
def test_a_compacted_batch_ends_as_one_that_is_not(name, smallest):
    def settle(compact):
        relax = implicit(SOLVERS[name], compact=compact)
        one = lambda *args: relax(network, args, jnp.zeros(3))._replace(memory=None)
        return jax.jit(jax.vmap(one))(GAINS, currents(11))

    assert_apart_by_rounding(settle(smallest), settle(None))


@pytest.mark.parametrize("transform", [jax.jit, lambda f: jax.jit(jax.vmap(f, (None, 0)))], ids=["jit", "vmap"])
def test_gradients_of_a_compacted_batch_are_those_of_one_that_is_not(transform):
    """Forward and backward compacted, every third step judged, alone and under a second vmap."""

    def loss(compact, gains, scale):
        relax = implicit(
            picard(), almeida_pineda(every=2, compact=compact), every=3, compact=compact, on_failure="zero"
        )
        states = jax.vmap(lambda *args: relax(network, args, jnp.zeros(3)).value)(gains, currents(11))
        return jnp.sum(states**2 * scale)

    scales = jnp.arange(1.0, 3.0)
    found, expected = (transform(jax.grad(lambda g, s, c=c: loss(c, g, jnp.sum(s))))(GAINS, scales) for c in (6, None))
    assert jnp.all(jnp.abs(expected) > 0)
    chex.assert_trees_all_close(found, expected, rtol=1e-7)


def test_samples_that_fail_end_as_they_would_alone():
    """One diverges and one is NaN from the start; the others settle."""
    gains = jnp.array([0.5, 3.0, jnp.nan, 0.9, 0.2])
    alone = lambda gain: solve(lambda z: gain * z + 1, jnp.zeros(1), damped(0.0), compact=1)._replace(memory=None)
    ended = jax.jit(jax.vmap(alone))(gains)
    converged, wild, nan = Status.CONVERGED, Status.DIVERGED, Status.NONFINITE
    assert ended.status.tolist() == [converged, wild, nan, converged, converged]
    chex.assert_trees_all_close(ended.value[jnp.array([0, 3, 4]), 0], 1 / (1 - gains[jnp.array([0, 3, 4])]), rtol=1e-7)


@pytest.mark.parametrize(("smallest", "expected"), [(1, 8 * 1 + 4 * 1 + 2 * 1 + 1 * 5), (8, 8 * 8), (3, 8 + 4 + 2 * 6)])
def test_the_cost_follows_the_samples_on_their_way(smallest, expected):
    """Four samples need 1 step, two 2, one 3, one 8: 8 rows work 1 step, then 4 one more, …; the control is 8 × 8."""
    rows = []
    needed = jnp.array([1, 8, 1, 2, 1, 3, 2, 1], jnp.int32)

    def counted(left):
        rows.append(left.size)
        return np.maximum(left - left.dtype.type(1), left.dtype.type(0))

    step = lambda left: jax.pure_callback(counted, left, left, vmap_method="expand_dims")
    ended = jax.vmap(lambda left: until_all_end(step, lambda left: left > 0, left, False, smallest))(needed)
    chex.assert_trees_all_equal(ended, jnp.zeros_like(needed))
    assert sum(rows) == expected


def test_below_one_is_refused():
    with pytest.raises(ValueError, match="compact must be at least 1, got 0"):
        solve(jnp.cos, jnp.zeros(()), compact=0)
