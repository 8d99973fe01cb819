"""Derivatives of both modes and both orders, of every exact adjoint, on the forward state of plain iteration."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.test_util import check_grads

from bptoolkit.fixed_point import Stop, implicit, picard, unrolled
from tests.fixed_point import methods

UNITS = 9  # one more than are eliminated, so that "exact" and "dense" go the way of larger states
TIGHT, TO_ROUNDING = Stop(rtol=1e-12), Stop(rtol=1e-14)
ADJOINTS, EXACTEST = methods.adjoints(TIGHT), methods.adjoints(TO_ROUNDING)
CURRENT = jnp.cos(jnp.arange(float(UNITS)))


def weights():
    """Symmetric, for methods that need real spectra; ρ(J) is about 0.7 at the fixed point."""
    w = jax.random.normal(jax.random.key(3), (UNITS, UNITS))
    return 0.12 * (w + w.T)


def settle(relax):
    """(gain, current) -> z*, compiled."""
    w = weights()
    f = lambda args, z: jnp.tanh(args[0] * (w @ z) + args[1])
    return jax.jit(lambda gain, current: relax(f, (gain, current), jnp.zeros(UNITS)).value)


# One inner solver of each kind: without memory, with a history, with an inverse of its own.
KINDS = [n for n in ADJOINTS if not n.startswith("almeida") or n.endswith(("(picard)", "(anderson)", "(broyden)"))]


@pytest.mark.parametrize("name", KINDS)
def test_differences_agree_to_second_order_forward_and_backward(name):
    """Central differences over steps of 1e-4 are good to 1e-8 of the third derivatives, and 1e-12/1e-4 of the solve."""
    settled = settle(implicit(picard(), ADJOINTS[name], TIGHT))
    check_grads(settled, (jnp.float64(1.0), CURRENT), order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", EXACTEST)
def test_forward_and_reverse_mode_are_transposes(name):
    """⟨Jv, u⟩ = ⟨v, Jᵀu⟩ to 1e-12 of |Jv| |u| + |v| |Jᵀu|, by solves that go on to rounding."""
    settled = settle(implicit(picard(), EXACTEST[name], TIGHT))
    primal = jnp.float64(1.0), CURRENT
    v, u = (jnp.float64(0.3), jnp.cos(3 * CURRENT)), jnp.linspace(-1.0, 1.0, UNITS)

    @jax.jit
    def both(v, u):
        return jax.jvp(settled, primal, v)[1], jax.vjp(settled, *primal)[1](u)

    pushed, pulled = both(v, u)
    norms = [jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))) for tree in (pushed, u, v, pulled)]
    gap = jnp.vdot(pushed, u) - (v[0] * pulled[0] + jnp.vdot(v[1], pulled[1]))
    assert jnp.abs(gap) <= 1e-12 * (norms[0] * norms[1] + norms[2] * norms[3])


def test_backprop_through_time_tends_to_it_at_the_rate_of_the_network():
    """Twenty more steps multiply the error of the gradient by ρ²⁰, with ρ the largest eigenvalue of J, in size."""
    args = jnp.float64(1.0), CURRENT
    gradient = lambda relax: jax.grad(lambda current: jnp.sum(settle(relax)(args[0], current) ** 2))(CURRENT)
    right = gradient(implicit(picard(), ADJOINTS["dense"], TIGHT))
    few, many = (jnp.linalg.norm(gradient(unrolled(steps)) - right) for steps in (20, 40))
    z = settle(implicit(picard(), stop=TIGHT))(*args)
    rho = jnp.abs(jnp.linalg.eigvals((1 - z**2)[:, None] * weights())).max()
    chex.assert_trees_all_close((many / few) ** (1 / 20), rho, rtol=0.05)
