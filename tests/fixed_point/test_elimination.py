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
    a, b = (jax.random.normal(jax.random.key(k), s, dtype) for k, s in enumerate([(20, n, n), (20, n, 2)]))
    chex.assert_trees_all_close(jax.vmap(eliminated)(a, b), jnp.linalg.solve(a, b), rtol=1e-9)


def test_rows_are_exchanged_where_the_pivot_would_be_zero():
    a = jnp.array([[0.0, 2.0, 0.0], [0.0, 0.0, 4.0], [5.0, 0.0, 0.0]])
    chex.assert_trees_all_close(eliminated(a, jnp.ones((3, 1)))[:, 0], jnp.array([0.2, 0.5, 0.25]))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tiny_pivot_costs_no_digits(sign):
    """Without exchanges, 1e-20 as first pivot gives (0, 1) in place of (1, 1)."""
    a = jnp.array([[1e-20, 1.0], [sign, sign]])
    chex.assert_trees_all_close(eliminated(a, jnp.array([[1.0], [2.0 * sign]]))[:, 0], jnp.ones(2), rtol=1e-12)


@pytest.mark.parametrize("n", [2, 20])
def test_a_singular_system_is_called_so(n):
    """J = I: I − Jᵀ is zero.  Beside it, in one batch, a system that is solved."""
    solution = jax.vmap(lambda gain: dense()(lambda v: gain * v, jnp.ones(n)))(jnp.array([1.0, 0.5]))
    assert solution.status.tolist() == [Status.SINGULAR, Status.CONVERGED]
    chex.assert_trees_all_close(solution.value[1], jnp.full(n, 2.0))


def test_what_rounding_costs_is_told():
    """Symmetric J in float32, one eigenvalue 1 − gap: CONVERGED is within five tolerances, however small the gap."""
    bases = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (50, 6, 6)))[0]
    others = jax.random.uniform(jax.random.key(1), (50, 5), minval=-0.9, maxval=0.9)
    g = jax.random.normal(jax.random.key(2), (50, 6))
    status = {}
    for gap in (1e-2, 1e-4, 1e-6, 1e-8):
        values = jnp.concatenate([jnp.full((50, 1), 1 - gap), others], axis=1)
        j = jnp.einsum("sij,sj,skj->sik", bases, values, bases).astype(jnp.float32)
        found = jax.vmap(lambda j, g: dense()(lambda v: j.T @ v, g))(j, g.astype(jnp.float32))
        true = jnp.linalg.solve(jnp.eye(6) - jnp.swapaxes(j, 1, 2).astype(float), g[..., None])[..., 0]
        apart = jnp.linalg.norm(found.value.astype(float) - true, axis=1)
        good = found.status == Status.CONVERGED
        assert jnp.all(jnp.where(good, apart <= 5e-4 * jnp.linalg.norm(true, axis=1), True))
        assert jnp.all(jnp.where(good, apart <= 10 * found.error.astype(float), True))
        status[gap] = found.status
    assert jnp.all(status[1e-2] == Status.CONVERGED)
    assert jnp.all(status[1e-6] != Status.CONVERGED)
    assert jnp.all(status[1e-8] == Status.SINGULAR)


@pytest.mark.parametrize(("k", "status"), [(8, Status.CONVERGED), (16, Status.STALLED), (20, Status.SINGULAR)])
def test_no_residual_is_no_more_digits_than_rounding_leaves(k, status):
    """J = 1 − 2^−k has λ = 2^k g without a residual in float32; rounding by 2^−24 makes an error of 2^(k − 24)."""
    ended = dense()(lambda v: (1 - jnp.float32(2.0**-k)) * v, jnp.ones(3, jnp.float32))
    assert (ended.residual, ended.status) == (0, status)
    chex.assert_trees_all_close(ended.error / jnp.linalg.norm(ended.value), jnp.float32(2.0 ** (k - 24)), rtol=1e-4)
