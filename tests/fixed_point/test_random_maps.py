"""Random maps with known fixed points: what is called converged is near, and what contracts is found.

The rates over 10,000 maps, Jordan blocks and cycles among them, are those of `scripts/study_stopping.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptoolkit.fixed_point import Status, Stop, anderson, damped, picard, solve

UNITS, RTOL = 7, 1e-4
SOLVERS = {"picard": picard(), "damped": damped(0.5), "anderson": anderson()}
KINDS = ("random", "symmetric", "skew", "rotation", "low rank")


def weights(kind, radius, rng):
    """Of this kind, with a spectral norm of `radius`."""
    w = rng.standard_normal((UNITS, UNITS))
    made = {
        "random": w,
        "symmetric": w + w.T,
        "skew": w - w.T,
        "rotation": np.linalg.qr(w)[0],
        "low rank": np.outer(w[0], w[1]),
    }[kind]
    return radius * made / np.linalg.norm(made, 2)


@functools.cache
def program(solver):
    """Settle z = φ(Wz + b), φ the identity or tanh; compiled once, in float32 as users have it."""

    def run(linear, w, b):
        f = lambda z: jnp.where(linear, w @ z + b, jnp.tanh(w @ z + b))
        return solve(f, jnp.zeros(UNITS, jnp.float32), SOLVERS[solver], Stop(rtol=RTOL, max_steps=2000))

    return jax.jit(run)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    linear=st.booleans(),
    radius=st.floats(0.0, 0.98),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_contracts_is_found_and_what_is_found_is_near(solver, kind, linear, radius, seed):
    """To within ten times the tolerance, and rounding.  Contractions of every kind need fewer steps than there are."""
    rng = np.random.default_rng(seed)
    w, target = weights(kind, radius, rng), np.tanh(rng.standard_normal(UNITS))
    b = (target if linear else np.arctanh(target)) - w @ target
    solution = program(solver)(linear, jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32))
    assert solution.status == Status.CONVERGED
    off = np.linalg.norm(np.asarray(solution.value, np.float64) - target)
    rounding = 1e-6 / (1 - radius)  # of W and b to float32, as the map passes it on
    assert off <= 10 * RTOL * np.linalg.norm(target) + rounding


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(("random", "symmetric", "rotation")),
    radius=st.floats(1.02, 3.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_plain_iteration_on_a_linear_map_that_expands_is_never_satisfied(kind, radius, seed):
    """Its spectral radius is above 1, so that the iterates leave every fixed point."""
    rng = np.random.default_rng(seed)
    w = weights(kind, 1.0, rng)
    w *= radius / np.abs(np.linalg.eigvals(w)).max()
    b = rng.standard_normal(UNITS)
    solution = program("picard")(True, jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32))
    assert solution.status != Status.CONVERGED
