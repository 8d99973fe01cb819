"""Gauss–Jordan elimination of small systems, against LAPACK."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import Status, dense
from bptoolkit.fixed_point.adjoints import eliminated


@pytest.mark.parametrize("n", [1, 2, 8, 16])
@pytest.mark.parametrize("dtype", [float, complex])
def test_it_solves_what_lapack_solves(n, dtype):
    a, b = (jax.random.normal(jax.random.key(k), s, dtype) for k, s in enumerate([(20, n, n), (20, n)]))
    expected = jnp.linalg.solve(a, b[..., None])[..., 0]
    chex.assert_trees_all_close(jax.vmap(eliminated)(a, b), expected, rtol=1e-9)


def test_rows_are_exchanged_where_the_pivot_would_be_zero():
    a = jnp.array([[0.0, 2.0, 0.0], [0.0, 0.0, 4.0], [5.0, 0.0, 0.0]])
    chex.assert_trees_all_close(eliminated(a, jnp.ones(3)), jnp.array([0.2, 0.5, 0.25]))


def test_a_tiny_pivot_costs_no_digits():
    """Without exchanges, 1e-20 as first pivot gives (0, 1) in place of (1, 1)."""
    a = jnp.array([[1e-20, 1.0], [1.0, 1.0]])
    chex.assert_trees_all_close(eliminated(a, jnp.array([1.0, 2.0])), jnp.ones(2), rtol=1e-12)


@pytest.mark.parametrize("n", [2, 20])
def test_a_singular_system_is_called_so(n):
    """J = I: I − Jᵀ is zero.  Beside it, in one batch, a system that is solved."""
    solution = jax.vmap(lambda gain: dense()(lambda v: gain * v, jnp.ones(n)))(jnp.array([1.0, 0.5]))
    assert solution.status.tolist() == [Status.SINGULAR, Status.CONVERGED]
    chex.assert_trees_all_close(solution.value[1], jnp.full(n, 2.0))
