"""Chebyshev iteration against the polynomials it is named after, and its learning of the spectrum."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import Status, Stop, almeida_pineda, chebyshev, dense, implicit, picard, solve


def symmetric_map(spectrum):
    n = len(spectrum)
    q = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (n, n)))[0]
    m = q @ jnp.diag(spectrum) @ q.T
    return m, (lambda z: m @ z + 1.0), jnp.linalg.solve(jnp.eye(n) - m, jnp.ones(n))


@pytest.mark.parametrize(("low", "high"), [(-0.9, 0.9), (0.0, 0.95), (-3.0, 0.5)])
def test_the_error_after_k_steps_is_a_scaled_chebyshev_polynomial_of_the_matrix(low, high):
    """e_k = T_k((M − c)/h) e_0 / T_k((1 − c)/h), with c the centre of the interval and h its half-width."""
    m, f, exact = symmetric_map(jnp.linspace(low, high, 12))
    values, vectors = np.linalg.eigh(np.asarray(m))
    centre, half = (low + high) / 2, (high - low) / 2
    for k in (1, 2, 3, 7):
        z = solve(f, jnp.zeros(12), chebyshev(low, high), Stop(rtol=0.0, max_steps=k)).value
        polynomial = np.polynomial.Chebyshev.basis(k)
        gain = polynomial((values - centre) / half) / polynomial((1 - centre) / half)
        expected = exact - vectors @ (gain * (vectors.T @ np.asarray(exact)))
        chex.assert_trees_all_close(z, expected, atol=1e-9)


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("kind", ["both signs", "positive", "one outlier"])
def test_without_bounds_it_needs_little_more_than_with_them(rho, kind):
    spectrum = {
        "both signs": jnp.linspace(-rho, rho, 40),
        "positive": jnp.linspace(0, rho, 40),
        "one outlier": jnp.linspace(-0.3, 0.3, 40).at[0].set(rho),
    }[kind]
    _, f, exact = symmetric_map(spectrum)
    told = solve(f, jnp.zeros(40), chebyshev(-rho, rho), Stop(rtol=1e-6, max_steps=5000))
    learning = solve(f, jnp.zeros(40), chebyshev(), Stop(rtol=1e-6, max_steps=5000))
    assert learning.status == told.status == Status.CONVERGED
    assert jnp.linalg.norm(learning.value - exact) <= 3e-6 * jnp.linalg.norm(exact)
    assert int(learning.steps) <= 1.4 * int(told.steps) + 8


def test_plain_iteration_needs_ten_times_as_many_steps():
    """Negative control for the test above."""
    _, f, _ = symmetric_map(jnp.linspace(-0.99, 0.99, 40))
    stop = Stop(rtol=1e-6, max_steps=5000)
    plain, fast = (int(solve(f, jnp.zeros(40), s, stop).steps) for s in (picard(), chebyshev()))
    assert plain > 10 * fast


def test_a_rotation_is_outside_its_reach_and_says_so():
    angle = 0.99 * jnp.array([[0.0, -1.0], [1.0, 0.0]])
    solution = solve(lambda z: angle @ z + 1, jnp.zeros(2), chebyshev(-0.9, 0.9), Stop(rtol=1e-8))
    assert solution.status == Status.DIVERGED


def test_it_runs_the_adjoint_and_takes_traced_bounds(network):
    (w, b), f = network
    args = ((w + w.T) / 2, b)

    def gradient(adjoint):
        relax = implicit(chebyshev(), adjoint, Stop(rtol=1e-12))
        return lambda args: jax.grad(lambda args: jnp.sum(relax(f, args, jnp.zeros(8)).value ** 2))(args)

    exact = jax.jit(gradient(dense()))(args)
    settle = lambda args, rho: gradient(almeida_pineda(chebyshev(-rho, rho), Stop(rtol=1e-12)))(args)
    chex.assert_trees_all_close(jax.jit(settle)(args, 0.9), exact, atol=1e-10)


@pytest.mark.parametrize(("low", "high"), [(None, 0.5), (0.5, 0.2), (0.0, 1.0)])
def test_bounds_that_are_none_or_not_bounds_are_refused(low, high):
    with pytest.raises(ValueError, match="chebyshev needs"):
        chebyshev(low, high)
