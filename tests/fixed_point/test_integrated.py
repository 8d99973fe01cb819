"""Continuous relaxation by Diffrax settles what Euler with a small dt does."""

from importlib import import_module

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import Status, Stop, almeida_pineda, implicit, integrated, picard, solve

TIGHT = Stop(rtol=1e-10)


def stiff():
    """Symmetric, eigenvalues −5 to 0.5."""
    q = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (8, 8)))[0]
    return q @ jnp.diag(jnp.linspace(-5.0, 0.5, 8)) @ q.T


def test_without_diffrax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(import_module("bptoolkit.fixed_point.integrated"), "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'bptoolkit\[diffrax\]'"):
        integrated()


def test_a_span_that_is_not_positive_gets_a_sentence():
    pytest.importorskip("diffrax")
    with pytest.raises(ValueError, match="span must be positive, got 0"):
        integrated(span=0)


def test_it_settles_where_plain_iteration_diverges():
    pytest.importorskip("diffrax")
    m = stiff()
    one = lambda c: solve(lambda z: m @ z + c, jnp.zeros(8), integrated(), TIGHT)
    c = jax.random.normal(jax.random.key(0), (3, 8))
    solution = jax.jit(jax.vmap(one))(c)
    chex.assert_trees_all_equal(solution.status, jnp.full(3, int(Status.CONVERGED), jnp.int32))
    chex.assert_trees_all_close(solution.value, jnp.linalg.solve(jnp.eye(8) - m, c.T).T, rtol=1e-8)
    assert solve(lambda z: m @ z + c[0], jnp.zeros(8), picard()).status == Status.DIVERGED


def test_its_rate_is_that_of_the_flow():
    """dz/dt = −0.5 z + 1 falls by exp(−0.5 · span) a step."""
    pytest.importorskip("diffrax")
    solution = solve(lambda z: 0.5 * z + 1.0, jnp.zeros(2), integrated(span=2.0, rtol=1e-8), Stop(rtol=1e-3))
    chex.assert_trees_all_close(solution.rate, jnp.exp(-1.0), rtol=1e-3)


def test_the_gradient_is_that_of_a_direct_solve():
    pytest.importorskip("diffrax")
    m, weights = stiff(), jnp.arange(8.0)
    relax = implicit(integrated(), almeida_pineda(integrated(), TIGHT), TIGHT)
    loss = lambda b: weights @ relax(lambda b, z: m @ z + b, b, jnp.zeros(8)).value
    expected = jnp.linalg.solve(jnp.eye(8) - m.T, weights)
    chex.assert_trees_all_close(jax.jit(jax.grad(loss))(jnp.ones(8)), expected, rtol=1e-7)


def test_float32_trees_keep_their_dtypes():
    pytest.importorskip("diffrax")
    f = lambda z: {"a": -3 * z["a"] + 1, "b": -2 * z["b"] + 3}
    start = {"a": jnp.zeros(3, jnp.float32), "b": jnp.zeros(2, jnp.float32)}
    solution = solve(f, start, integrated())
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_equal_dtypes(solution.value, start)
    expected = {"a": jnp.full(3, 0.25, jnp.float32), "b": jnp.ones(2, jnp.float32)}
    chex.assert_trees_all_close(solution.value, expected, rtol=1e-4)


def test_a_span_that_needs_too_many_steps_is_told():
    pytest.importorskip("diffrax")
    solver = integrated(max_steps=2, span=50.0, rtol=1e-6)
    assert solve(lambda z: -9.0 * z + 1, jnp.zeros(2), solver).status == Status.NONFINITE


def test_complex_states_settle_and_are_differentiated():
    """z = a z + c z̄ + b beside a real leaf, by the equation and its conjugate; plain iteration diverges."""
    pytest.importorskip("diffrax")
    a, c = -3 + 2j, 0.5 - 0.25j
    f = lambda b, z: {"z": a * z["z"] + c * z["z"].conj() + b, "r": -2 * z["r"] + jnp.abs(z["z"])}
    start = {"z": jnp.zeros(2, complex), "r": jnp.zeros(2)}
    relax = implicit(integrated(), almeida_pineda(integrated(), TIGHT), TIGHT)
    b = jnp.array([1 - 2j, 0.5j])

    def loss(b):
        solution = relax(f, b, start)
        return jnp.sum(solution.value["r"] + solution.value["z"].imag), solution

    gradient, solution = jax.jit(jax.grad(loss, has_aux=True))(b)
    settled = lambda b: ((1 - a.conjugate()) * b + c * b.conj()) / (abs(1 - a) ** 2 - abs(c) ** 2)
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value, {"z": settled(b), "r": jnp.abs(settled(b)) / 3}, rtol=1e-8)
    expected = jax.grad(lambda b: jnp.sum(jnp.abs(settled(b)) / 3 + settled(b).imag))(b)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-7)
    assert solve(lambda z: f(b, z), start, picard()).status == Status.DIVERGED
