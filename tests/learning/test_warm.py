"""Warm starts of z and λ, keyed by row: the same gradients, in fewer steps."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from bptoolkit import data
from bptoolkit.fixed_point import Status, Stop, almeida_pineda, implicit, picard
from bptoolkit.learning import backprop, fit, warm_backprop
from bptoolkit.learning.learner import rows_of
from bptoolkit.models import equilibrium, mlp, rate_cell

STOP = Stop(rtol=1e-7)
MODEL = equilibrium(rate_cell(4, 12, 3, gain=0.9), implicit(picard(), almeida_pineda(stop=STOP), STOP))
ROWS = 6


@pytest.fixture(scope="module")
def batch():
    x_key, y_key = jax.random.split(jax.random.key(0))
    rows = rows_of(jax.random.normal(x_key, (3, 4)), jax.random.randint(y_key, (3,), 0, 3), 3, 1.0)
    return rows._replace(index=jnp.array([4, 1, 3]), weight=jnp.array([1.0, 2.0, 0.5]))


WARM = warm_backprop(MODEL, ROWS)
GRADIENT = jax.jit(WARM.gradient)


def fresh():
    return WARM.init(None, None, None)


def test_gradients_agree_and_the_second_time_hardly_a_step_is_left(batch):
    params = MODEL.init(jax.random.key(1))
    expected, cold, _ = jax.jit(backprop(MODEL).gradient)((), params, batch, jax.random.key(2))
    first, info, memory = GRADIENT(fresh(), params, batch, jax.random.key(2))
    chex.assert_trees_all_close(first, expected, rtol=1e-5, atol=1e-8)
    chex.assert_trees_all_equal(info.forward.steps, cold.forward.steps)
    moved = jax.tree.map(lambda w: w * (1 + 1e-4), params)
    expected, cold, _ = jax.jit(backprop(MODEL).gradient)((), moved, batch, jax.random.key(2))
    again, info, _ = GRADIENT(memory, moved, batch, jax.random.key(2))
    chex.assert_trees_all_close(again, expected, rtol=1e-5, atol=1e-8)
    assert (info.forward.status == Status.CONVERGED).all()
    assert (4 * info.forward.steps < 3 * cold.forward.steps).all()
    assert (4 * info.backward.steps < 3 * cold.backward.steps).all()


def test_a_row_is_known_by_its_index_in_any_order_and_at_any_weight(batch):
    params = MODEL.init(jax.random.key(1))
    memory = GRADIENT(fresh(), params, batch, jax.random.key(2))[2]
    turned = jax.tree.map(lambda leaf: leaf[::-1], batch)._replace(weight=jnp.array([3.0, 0.1, 1.0]))
    info = GRADIENT(memory, params, turned, jax.random.key(2))[1]
    assert (info.forward.steps <= 3).all()
    assert (info.backward.steps <= 3).all()
    strangers = GRADIENT(memory, params, turned._replace(index=jnp.array([0, 2, 5])), jax.random.key(2))[1]
    assert (strangers.forward.steps > 5).all()


def test_only_what_settled_is_remembered_and_only_its_own_row_is_written(batch):
    params = MODEL.init(jax.random.key(1))
    wild = batch._replace(x=batch.x.at[0].set(jnp.nan), index=jnp.array([4, 1, 99]))
    memory = GRADIENT(fresh(), params, wild, jax.random.key(2))[2]
    written = jnp.any(memory.z != 0, axis=1)
    assert written.tolist() == [False, True, False, False, False, False]
    assert jnp.isfinite(memory.adjoint).all()


def test_a_row_without_weight_keeps_its_adjoint_state(batch):
    """It has none of its own in that batch; its z is remembered."""
    params = MODEL.init(jax.random.key(1))
    memory = GRADIENT(fresh(), params, batch, jax.random.key(2))[2]
    silent = batch._replace(x=-batch.x, weight=batch.weight.at[1].set(0))
    after = GRADIENT(memory, params, silent, jax.random.key(2))[2]
    chex.assert_trees_all_equal(after.adjoint[1], memory.adjoint[1])
    assert jnp.abs(memory.adjoint[1]).max() > 1e-3
    assert jnp.abs(after.adjoint[4] - memory.adjoint[4]).max() > 1e-3
    assert jnp.abs(after.z[1] - memory.z[1]).max() > 1e-3


def test_training_ends_at_the_same_weights_in_fewer_steps():
    clouds = data.gaussian_classes(jax.random.key(3), classes=3, rows=4, features=4)
    rows = len(clouds.train.y)
    run = lambda learner: fit(learner, clouds, optax.sgd(0.003), jax.random.key(0), steps=30, batch=4)
    cold, warm = run(backprop(MODEL)), run(warm_backprop(MODEL, rows))
    chex.assert_trees_all_close(warm.params, cold.params, rtol=1e-4, atol=1e-6)
    late = lambda curve: jnp.mean(curve[-12:])
    assert late(warm.curves.settling_steps) < 0.85 * late(cold.curves.settling_steps)
    assert late(warm.curves.backward_steps) < 0.85 * late(cold.curves.backward_steps)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: warm_backprop(mlp(4, 3), 5), "needs a model that settles"),
        (lambda: warm_backprop("x", 3), "warm_backprop needs a Model, got str. Make one of a cell by equilibrium"),
        (lambda: warm_backprop(MODEL, 5, "ce"), r"loss must be a function of \(logits, .*, got str"),
        (lambda: warm_backprop(MODEL, 0), "rows must be at least 1, got 0. Take len"),
        (lambda: warm_backprop(MODEL, 2.5), "rows must be a whole number, got 2.5. Take len"),
        (lambda: warm_backprop(MODEL, True), "rows must be a whole number, got True"),
    ],
)
def test_what_cannot_be_warm_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_row_without_a_number_settles_from_zero(batch):
    """Generated rows have the index −1, which must not be taken for the last row, nor written to its place."""
    params = MODEL.init(jax.random.key(1))
    last = batch._replace(index=jnp.array([4, 1, 5]))
    memory = GRADIENT(fresh(), params, last, jax.random.key(2))[2]
    turned = last._replace(x=-last.x, index=jnp.array([4, 1, -1]))
    chex.assert_trees_all_equal(GRADIENT(memory, params, turned, jax.random.key(2))[2].z[5], memory.z[5])
    steps = lambda index: GRADIENT(memory, params, last._replace(index=index), jax.random.key(2))[1].forward.steps[2]
    assert steps(jnp.array([4, 1, 5])) <= 3
    assert steps(jnp.array([4, 1, -1])) > 5
