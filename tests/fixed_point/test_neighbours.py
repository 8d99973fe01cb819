"""Samples of a batch never touch each other, in value and gradient, whatever solver and adjoint they go by."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptoolkit.fixed_point import Status, Stop, broyden, damped, implicit, integrated, phantom, picard, shine, unrolled
from bptoolkit.fixed_point.splitting import Resolvent, forward_backward, peaceman_rachford
from tests.fixed_point import methods

STOP = Stop(rtol=1e-6, max_steps=200)
ADJOINTS = methods.adjoints(STOP)
PAIRS = {f"{s}, {a}": (methods.SOLVERS[s], ADJOINTS[a]) for s, a in methods.paired(methods.SOLVERS, ADJOINTS)}
PAIRS |= {"picard, phantom": (picard(), phantom()), "broyden, shine": (broyden(), shine(1))}
PAIRS |= {"optax": (optax.sgd(0.5, momentum=0.3), None), "forward_backward": (forward_backward(0.3), None)}
PAIRS |= {"peaceman_rachford": (peaceman_rachford(), None)}
CASES = {name: lambda pair=pair: implicit(*pair, STOP) for name, pair in PAIRS.items()}
CASES |= {
    "unrolled": lambda: unrolled(40),
    "truncated": lambda: unrolled(40, truncate=5),
    "checkpointed": lambda: unrolled(40, checkpoint=True),
    "integrated": lambda: implicit(integrated(), stop=STOP),
}
W = jnp.sin(jnp.arange(144.0)).reshape(12, 12) / 12  # more units than are eliminated
GAINS = {"nan": jnp.nan, "divergent": 1e3, "well": 0.7}
OTHERS = jnp.array([0, 2, 3])


def lanes(kind):
    return jnp.array([0.3, GAINS[kind], -0.8, 0.9])


def resolvent(args, alpha=0.5):
    """What splitting solvers ask for."""
    gain, b = args
    whole = jnp.linalg.inv((1 + alpha) * jnp.eye(12) - alpha * gain * W)
    return {"resolvent": Resolvent(lambda z: gain * (W @ z) + b, lambda u: whole @ (u + alpha * b))}


def gradients(relax, split):
    bend = jax.nn.relu if split else lambda a: a

    def value(b, gain):
        f = lambda args, z: bend(args[0] * (W @ z) + args[1])
        z = relax(f, (gain, b), jnp.zeros(12), **({"extra": resolvent} if split else {})).value
        return jnp.sum(jnp.arange(12.0) * jnp.square(z))

    return jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))


@pytest.mark.parametrize("name", CASES)
def test_the_others_are_the_same_bits_and_in_another_order_or_number_the_same_but_for_rounding(name):
    if name == "integrated":
        pytest.importorskip("diffrax")
    both = gradients(CASES[name](), split=name in ("forward_backward", "peaceman_rachford"))
    b = jnp.cos(jnp.arange(12.0))
    keep = lambda batch: jax.tree.map(lambda x: x[OTHERS], batch)
    healthy = keep(both(b, lanes("well")))
    assert jnp.isfinite(healthy[1]).all()
    chex.assert_trees_all_equal(keep(both(b, lanes("nan"))), healthy)
    chex.assert_trees_all_equal(keep(both(b, lanes("divergent"))), healthy)
    turned = jax.tree.map(lambda x: x[::-1], both(b, lanes("well")[::-1]))
    chex.assert_trees_all_close(keep(turned), healthy, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(both(b, lanes("well")[OTHERS]), healthy, rtol=1e-9, atol=1e-12)


def drawn(seed, rho, spread, gap):
    """A symmetric map with eigenvalues between −spread · ρ and ρ, and its fixed point."""
    q = jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (8, 8)))[0]
    m = q @ jnp.diag(rho * jnp.linspace(-spread, 1.0, 8) ** gap) @ q.T
    return lambda z: m @ z + 1, jnp.linalg.solve(jnp.eye(8) - m, jnp.ones(8))


@partial(jax.jit, static_argnums=0)
def ended(solver, seed, rho, spread, gap):
    """How it ended, and how many tolerances it is off."""
    f, right = drawn(seed, rho, spread, gap)
    found = implicit(solver, stop=Stop(rtol=1e-4, max_steps=100_000))(lambda _, z: f(z), (), jnp.zeros(8))
    return found.status, jnp.linalg.norm(found.value - right) / (1e-4 * jnp.linalg.norm(right))


maps = {
    "seed": st.integers(0, 2**31 - 1),
    "rho": st.floats(0.0, 0.999),
    "spread": st.floats(0.0, 1.0),
    "gap": st.sampled_from([1.0, 3.0]),
}


@pytest.mark.parametrize("solver", [picard(), damped(0.5), damped(0.9)], ids=["picard", "damped 0.5", "damped 0.9"])
@settings(max_examples=40, deadline=None)
@given(**maps)
def test_what_is_called_converged_is_within_its_tolerance(solver, seed, rho, spread, gap):
    """Contractions up to ρ = 0.999: none is missed, none is off by more than three tolerances."""
    status, off = ended(solver, seed, rho, spread, gap)
    assert status == Status.CONVERGED
    assert off <= 3


@pytest.mark.parametrize("name", ["anderson", "broyden", "default"])
@settings(max_examples=40, deadline=None)
@given(**maps)
def test_of_solvers_that_jump_none_called_converged_is_ten_tolerances_off(name, seed, rho, spread, gap):
    status, off = ended(methods.SOLVERS[name], seed, rho, spread, gap)
    assert status != Status.CONVERGED or off <= 10
