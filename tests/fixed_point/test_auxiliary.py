"""What f returns beside its state: the same numbers, and the same gradients, as asking for them afterwards by hand."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import Status, Stop, dense, implicit, picard, unrolled, value_and_grad, with_aux

TIGHT = Stop(rtol=1e-12)
RELAXATIONS = {"implicit": implicit(picard(), dense(), TIGHT), "unrolled": unrolled(60)}
START = jnp.zeros(8)


def watched(args, z):
    """The network, with its drives u = W z + b, the energy that they hold, and how many are positive."""
    u = args[0] @ z + args[1]
    return jnp.tanh(u), {"energy": jnp.sum(jnp.arange(8.0) * u**2), "positive": jnp.sum(u > 0)}


def energy(relax, args):
    solution, aux = with_aux(relax)(watched, args, START)
    return aux["energy"] + jnp.sum(solution.value), aux


def energy_by_hand(args, steps=200):
    """The same by autodiff through the steps."""
    z, _ = jax.lax.scan(lambda z, _: (watched(args, z)[0], None), START, length=steps)
    return watched(args, z)[1]["energy"] + jnp.sum(z)


@pytest.mark.parametrize("name", RELAXATIONS)
def test_aux_is_that_of_the_settled_state_and_so_is_its_gradient(name, network):
    args, _ = network
    gradient, aux = jax.jit(jax.grad(lambda args: energy(RELAXATIONS[name], args), has_aux=True))(args)
    chex.assert_trees_all_close(gradient, jax.jit(jax.grad(energy_by_hand))(args), atol=1e-10)
    assert aux["positive"].dtype == jnp.int64
    settled = RELAXATIONS[name](lambda a, z: watched(a, z)[0], args, START).value
    chex.assert_trees_all_close(aux, watched(args, settled)[1], rtol=1e-12)


def test_the_way_by_the_settled_state_counts(network):
    """Control: of aux at a state held still only the direct part remains."""
    args, f = network
    relax = RELAXATIONS["implicit"]
    held = lambda args: watched(args, jax.lax.stop_gradient(relax(f, args, START).value))[1]["energy"]
    whole = lambda args: with_aux(relax)(watched, args, START)[1]["energy"]
    direct, all_of_it = (jax.jit(jax.grad(function))(args)[1] for function in (held, whole))
    assert jnp.linalg.norm(direct - all_of_it) > 0.1 * jnp.linalg.norm(all_of_it)


def test_a_batch_has_the_aux_and_gradient_of_each(network):
    (w, b), _ = network
    currents = jnp.stack([b, b + 1, b / 2])
    one = jax.grad(lambda b: energy(RELAXATIONS["implicit"], (w, b)), has_aux=True)
    together = jax.jit(jax.vmap(one))(currents)
    alone = jax.jit(one)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[alone(current) for current in currents])
    chex.assert_trees_all_close(together, expected, rtol=1e-10)
    assert len(set(together[1]["positive"].tolist())) > 1


def test_aux_may_be_read_of_a_sample_that_failed():
    """f doubles its state: the gradient by way of the state is dropped, aux and its direct gradient remain."""
    relax = implicit(picard(), dense(), Stop(max_steps=3), on_failure="zero")
    double = lambda a, z: (2 * z + a, 5 * a + jnp.sum(z))
    gradient, solution = jax.jit(jax.grad(lambda a: with_aux(relax)(double, a, jnp.ones(2))[::-1], has_aux=True))(1.0)
    assert solution.status != Status.CONVERGED
    chex.assert_trees_all_close(gradient, 5.0)


def test_a_loss_may_have_aux_too(network):
    args, f = network
    loss = lambda _, z: jnp.sum(jnp.arange(8.0) * z**2)
    both = lambda args, z: (loss(args, z), {"largest": jnp.max(z)})
    plain = value_and_grad(loss, RELAXATIONS["implicit"])
    told = value_and_grad(both, RELAXATIONS["implicit"], has_aux=True)
    value, *rest = jax.jit(lambda args: plain(f, args, START))(args)
    (same, aux), *others = jax.jit(lambda args: told(f, args, START))(args)
    chex.assert_trees_all_close((same, others), (value, rest), rtol=1e-12)
    chex.assert_trees_all_close(aux["largest"], jnp.max(rest[1].value))
