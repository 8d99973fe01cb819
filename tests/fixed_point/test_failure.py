"""Policies for a settling that failed: flag, NaN, zero, raise; sample by sample."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

from bptoolkit.fixed_point import Status, Stop, almeida_pineda, damped, implicit, neumann, picard, require, solve

GAINS = jnp.array([0.5, 2.0, 0.9])  # the second grows without end


def gradients(policy, adjoint=None, stop=Stop(max_steps=400)):
    """Per sample: ∂z*/∂c of z = gain · z + c, which is 1/(1 − gain), and the values."""
    relax = implicit(picard(), adjoint, stop, on_failure=policy)
    settle = lambda c, gain: relax(lambda args, z: args[1] * z + args[0], (c, gain), jnp.zeros(1)).value.sum()
    values, grads = jax.vmap(jax.value_and_grad(settle), in_axes=(None, 0))(1.0, GAINS)
    return values, grads


EXPECTED = 1 / (1 - GAINS[jnp.array([0, 2])])


@pytest.mark.parametrize("policy", ["flag", "nan", "zero"])
def test_samples_that_settle_are_as_without_a_policy(policy):
    values, grads = gradients(policy)
    chex.assert_trees_all_close(values[jnp.array([0, 2])], EXPECTED, rtol=1e-6)
    chex.assert_trees_all_close(grads[jnp.array([0, 2])], EXPECTED, rtol=1e-6)


def test_a_failed_sample_becomes_nan_or_gives_no_gradient():
    assert jnp.isfinite(jnp.stack(gradients("flag"))[:, 1]).all()
    assert jnp.isnan(jnp.stack(gradients("nan"))[:, 1]).all()
    value, grad = jnp.stack(gradients("zero"))[:, 1]
    assert jnp.isfinite(value)
    assert grad == 0


def test_a_backward_failure_counts_by_itself():
    """Forward converges; the adjoint gets too few steps at gain 0.9."""
    short = almeida_pineda(stop=Stop(max_steps=50))
    assert gradients("flag", short)[1][2] > 9.0
    assert gradients("zero", short)[1][2] == 0
    assert jnp.isnan(gradients("nan", short)[1][2])
    assert gradients("zero", short)[1][0] == gradients("flag", short)[1][0]


def test_a_biased_adjoint_has_not_failed_for_being_short():
    chex.assert_trees_all_close(gradients("zero", neumann(2))[1][0], 1.75)  # 1 + 1/2 + 1/4


def test_a_biased_adjoint_that_diverges_has_failed():
    """Damped steps settle z = c − 3 z, whose derivative is 1/4; the sum of twelve powers of −3 has lost all sense."""

    def gradient(policy):
        relax = implicit(damped(0.8), neumann(12), on_failure=policy)
        return jax.grad(lambda c: relax(lambda c, z: c - 3 * z, c, jnp.zeros(1)).value.sum())(1.0)

    assert gradient("flag") == (1 + 3**13) / 4
    assert gradient("zero") == 0


def test_a_sample_that_was_lost_spoils_no_weight_that_it_shares():
    """The second runs away until f returns inf; under "flag" its NaN is in the gradient of the shared weight."""
    f = lambda args, z: jnp.exp(args[1] * args[0] * z) / 2

    def loss(weight, policy):
        relax = implicit(picard(), on_failure=policy)
        settled = jax.vmap(lambda gain: relax(f, (weight, gain), jnp.zeros(1)))(jnp.array([0.5, 5000.0]))
        return jnp.sum(jnp.where(settled.status[:, None] == Status.CONVERGED, settled.value, 0)), settled.status

    grad, status = jax.grad(loss, has_aux=True)(1.0, "zero")
    assert status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    z = jax.lax.fori_loop(0, 100, lambda _, z: jnp.exp(z / 2) / 2, 0.0)
    chex.assert_trees_all_close(grad, (z * z / 2) / (1 - z / 2), rtol=1e-6)
    assert jnp.isnan(jax.grad(loss, has_aux=True)(1.0, "flag")[0])


def test_raise_raises_outside_jit():
    relax = implicit(picard(), on_failure="raise")
    chex.assert_trees_all_close(relax(lambda a, z: a * z + 1, 0.5, jnp.zeros(1)).value, jnp.array([2.0]))
    with pytest.raises(Exception, match="1 of its samples did not"):
        relax(lambda a, z: a * z + 1, 2.0, jnp.zeros(1))


def test_raise_inside_jit_is_collected_by_checkify():
    relax = implicit(picard(), on_failure="raise")
    settle = jax.jit(checkify.checkify(lambda a: relax(lambda a, z: a * z + 1, a, jnp.zeros(1)).value))
    settle(0.5)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="A relaxation must converge"):
        settle(2.0)[0].throw()


def test_require_counts_the_samples_of_a_batch():
    solutions = jax.vmap(lambda gain: solve(lambda z: gain * z + 1, jnp.zeros(1), picard(), Stop(max_steps=400)))(GAINS)
    assert solutions.status[1] == Status.DIVERGED
    with pytest.raises(Exception, match="1 of its samples did not, with a largest status of 2"):
        require(solutions)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="on_failure must be one of flag, nan, zero, raise, got 'skip'"):
        implicit(on_failure="skip")
