"""The same fixed points and gradients by other libraries; skipped where they are not installed (the extra `peers`)."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import Stop, exact, implicit, one_step, picard

UNITS = 12
START = jnp.zeros(UNITS)
TIGHT = Stop(rtol=1e-12)
BUDGET = 3000  # steps: more than plain iteration needs for the last digits of either map


def tanh_net(args, z):
    """A random net whose spectrum fills a disc of radius 0.7."""
    return jnp.tanh(args[0] @ z + args[1])


def linear_net(args, z):
    """z = W z + c with a symmetric W whose eigenvalues reach ±0.95."""
    return args[0] @ z + args[1]


def given(f):
    w_key, c_key = jax.random.split(jax.random.key(11))
    w, c = jax.random.normal(w_key, (UNITS, UNITS)), jax.random.normal(c_key, (UNITS,))
    w, radius = (w, 0.7) if f is tanh_net else (w + w.T, 0.95)
    return w * (radius / jnp.abs(jnp.linalg.eigvals(w)).max()), c


def ours(f, adjoint):
    return lambda args: implicit(picard(), adjoint, TIGHT)(f, args, START).value


def jaxopt_picard(f):
    jaxopt = pytest.importorskip("jaxopt", reason="jaxopt is not installed: pip install 'bptoolkit[peers]'")
    linear = lambda matvec, b: jaxopt.linear_solve.solve_bicgstab(matvec, b, tol=1e-14)
    options = {"maxiter": BUDGET, "tol": 1e-14, "implicit_diff": True, "implicit_diff_solve": linear}
    solver = jaxopt.FixedPointIteration(lambda z, args: f(args, z), **options)
    return lambda args: solver.run(START, args).params


def optimistix_picard(f):
    missing = "optimistix is not installed: pip install 'bptoolkit[peers]'"
    optimistix = pytest.importorskip("optimistix", reason=missing)
    solver = optimistix.FixedPointIteration(rtol=1e-14, atol=1e-14)
    settle = lambda args: optimistix.fixed_point(lambda z, a: f(a, z), solver, START, args, max_steps=BUDGET)
    return lambda args: settle(args).value


PEERS = {"jaxopt": jaxopt_picard, "optimistix": optimistix_picard}


def both(settle, args):
    """The fixed point, and the gradient of Σ i z_i² with respect to W and c."""

    def loss(args):
        z = settle(args)
        return jnp.sum(jnp.arange(1.0, UNITS + 1) * z**2), z

    gradient, z = jax.jit(jax.grad(loss, has_aux=True))(args)
    return z, gradient


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("f", [tanh_net, linear_net])
def test_a_peer_finds_the_same_state_and_gradient(peer, f):
    """Control: the one-step gradient, of the same state, is told from the peer's."""
    args = given(f)
    theirs = both(PEERS[peer](f), args)
    chex.assert_trees_all_close(both(ours(f, exact(TIGHT)), args), theirs, rtol=1e-9, atol=1e-9)
    state, gradient = both(ours(f, one_step()), args)
    chex.assert_trees_all_close(state, theirs[0], rtol=1e-9, atol=1e-9)
    assert jnp.linalg.norm(gradient[0] - theirs[1][0]) > 0.1 * jnp.linalg.norm(theirs[1][0])
