"""Backpropagation as a learner, against `jax.grad` of a mean written out by hand and against settling unrolled."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import Status, Stop, almeida_pineda, implicit, picard, unrolled
from bptoolkit.learning import backprop, squared_error
from bptoolkit.learning.learner import rows_of
from bptoolkit.models import equilibrium, mlp, rate_cell

CELL = rate_cell(4, 12, 3)  # more units than the adjoint solves at once
TIGHT = Stop(rtol=1e-13)


@pytest.fixture
def batch(key):
    x_key, y_key, w_key = jax.random.split(key, 3)
    rows = rows_of(jax.random.normal(x_key, (5, 4)), jax.random.randint(y_key, (5,), 0, 3), 3, 1.0)
    return rows._replace(weight=jax.random.uniform(w_key, (5,), minval=0.5, maxval=2.0))


@pytest.mark.parametrize("loss", ["ce", None, 0.5, lambda logits, target: 0.0, equilibrium(CELL)], ids=type)
def test_a_loss_that_is_none_is_refused(loss):
    with pytest.raises(
        ValueError, match=r"loss must be a function of \(logits, target, active, temperature\), as .*, got"
    ):
        backprop(mlp(4, 3), loss)


def gradient_of(learner, params, batch):
    grads, info, memory = jax.jit(learner.gradient)((), params, batch, jax.random.key(9))
    assert memory == ()
    return grads, info


def mean_by_loop(apply, batch, loss):
    """Σ_r w_r L_r / Σ_r w_r, row by row."""

    def value(params):
        rows = range(len(batch.x))
        total = sum(batch.weight[r] * loss(apply(params, batch.x[r])[0], batch.target[r]) for r in rows)
        return total / batch.weight.sum()

    return value


def negative_log_likelihood(logits, target):
    return jax.nn.logsumexp(logits) - logits @ target


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [(None, negative_log_likelihood), (squared_error, lambda o, t: 0.5 * jnp.sum((t - o) ** 2))],
    ids=["cross_entropy", "squared_error"],
)
def test_static_backprop_is_the_gradient_of_the_weighted_mean_loss(batch, loss, by_hand):
    model = mlp(4, 6, 3)
    learner = backprop(model) if loss is None else backprop(model, loss)
    params = model.init(jax.random.key(1))
    grads, info = gradient_of(learner, params, batch)
    value, expected = jax.value_and_grad(mean_by_loop(model.apply, batch, by_hand))(params)
    chex.assert_trees_all_close(grads, expected, atol=1e-13)
    np.testing.assert_allclose(info.loss, value, rtol=1e-13)


def test_recurrent_backprop_is_the_gradient_through_300_unrolled_steps(batch):
    model, reference = equilibrium(CELL, implicit(stop=TIGHT)), equilibrium(CELL, unrolled(300))
    params = model.init(jax.random.key(1))
    grads, info = gradient_of(backprop(model), params, batch)
    value, expected = jax.value_and_grad(mean_by_loop(reference.apply, batch, negative_log_likelihood))(params)
    chex.assert_trees_all_close(grads, expected, atol=1e-10)
    np.testing.assert_allclose(info.loss, value, rtol=1e-10)


def test_a_feed_forward_model_reports_no_settling(batch):
    model = mlp(4, 3)
    _, info = gradient_of(backprop(model), model.init(jax.random.key(1)), batch)
    assert info.forward is None
    assert info.backward is None


def test_every_row_reports_how_it_settled_forward_and_backward(batch):
    """Each row's report is that of its own settling; with a gain of ½ all of them converge."""
    model = equilibrium(CELL, implicit(stop=Stop(rtol=1e-8)))
    params = model.init(jax.random.key(1))
    _, info = gradient_of(backprop(model), params, batch)
    for told in (info.forward, info.backward):
        assert told.steps.shape == told.status.shape == told.rate.shape == (5,)
        assert (told.status == Status.CONVERGED).all()
        assert (told.steps > 1).all()
    alone = [int(model.apply(params, x)[1].forward.steps) for x in batch.x]
    np.testing.assert_array_equal(info.forward.steps, alone)
    np.testing.assert_array_equal(info.weight, batch.weight)  # by which the curves count them


def test_rows_that_stop_too_soon_are_flagged_one_by_one(batch):
    """z = 0 is the fixed point of a row without input or bias, so that row alone settles within 3 steps."""
    model = equilibrium(CELL, implicit(stop=Stop(rtol=1e-8, max_steps=3)))
    params = model.init(jax.random.key(1))
    params = {**params, "b": jnp.zeros_like(params["b"])}
    _, info = gradient_of(backprop(model), params, batch._replace(x=batch.x.at[2].set(0)))
    np.testing.assert_array_equal(info.forward.status == Status.CONVERGED, [r == 2 for r in range(5)])


def test_the_backward_report_is_the_adjoints_own(batch):
    """A forward settling that has all its steps and an adjoint that has two: only the backward one is flagged."""
    short = almeida_pineda(picard(), Stop(rtol=1e-8, max_steps=2))
    model = equilibrium(CELL, implicit(adjoint=short, stop=Stop(rtol=1e-8)))
    _, info = gradient_of(backprop(model), model.init(jax.random.key(1)), batch)
    assert (info.forward.status == Status.CONVERGED).all()
    assert (info.backward.status == Status.MAX_STEPS).all()
    np.testing.assert_array_equal(info.backward.steps, 2)


@pytest.mark.parametrize("model", [mlp(4, 6, 3), equilibrium(CELL)], ids=["static", "recurrent"])
def test_rows_without_weight_change_nothing(batch, model):
    params = model.init(jax.random.key(1))
    with_spare = batch._replace(weight=batch.weight.at[3:].set(0))
    padded, _ = gradient_of(backprop(model), params, with_spare)
    alone, _ = gradient_of(backprop(model), params, jax.tree.map(lambda leaf: leaf[:3], batch))
    other, _ = gradient_of(backprop(model), params, with_spare._replace(target=batch.target.at[3:].set(7.0)))
    chex.assert_trees_all_close(padded, alone, atol=1e-13)
    chex.assert_trees_all_equal(padded, other)
    everything, _ = gradient_of(backprop(model), params, batch)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (padded, everything)), strict=True)) > 1e-3


def test_only_the_weights_ratio_counts(batch):
    model = mlp(4, 3)
    params = model.init(jax.random.key(1))
    once, _ = gradient_of(backprop(model), params, batch)
    tenfold, _ = gradient_of(backprop(model), params, batch._replace(weight=10 * batch.weight))
    chex.assert_trees_all_close(once, tenfold, atol=1e-14)


def test_a_batch_without_weight_has_no_gradient(batch):
    model = mlp(4, 3)
    grads, info = gradient_of(
        backprop(model), model.init(jax.random.key(1)), batch._replace(weight=jnp.zeros_like(batch.weight))
    )
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))
    assert info.loss == 0
