"""Losses against NumPy and against an output layer from which the masked outputs were really removed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.learning.losses import (
    binary_cross_entropy,
    correct,
    cross_entropy,
    mean_loss,
    output_error,
    probabilities,
    squared_error,
)
from bptoolkit.types import Batch

LOGITS = jnp.array([0.2, -1.5, 3.0, 0.7, 50.0])
TARGETS = {"hard": jnp.array([0.0, 1.0, 0.0, 0.0, 0.0]), "soft": jnp.array([0.1, 0.3, 0.4, 0.2, 0.0])}
ACTIVE = jnp.array([True, True, True, True, False])
LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_cross_entropy_is_that_of_the_active_outputs_alone(target, temperature):
    z, t = np.asarray(LOGITS[:4]) / temperature, np.asarray(target[:4])
    expected = -np.sum(t * np.log(np.exp(z) / np.exp(z).sum()))
    assert float(cross_entropy(LOGITS, target, ACTIVE, temperature)) == pytest.approx(expected, rel=1e-13)


def test_squared_error_is_half_the_sum_over_active_outputs():
    """½ ((0.2)² + (1.5 + 1)² + 3² + 0.7²) = ½ (0.04 + 6.25 + 9 + 0.49)."""
    assert float(squared_error(LOGITS, TARGETS["hard"], ACTIVE)) == pytest.approx(7.89, rel=1e-13)


@every
@pytest.mark.parametrize("hidden", [0.0, 1e30, jnp.inf, jnp.nan])
def test_a_masked_output_is_as_if_removed(loss, hidden):
    """Value, and gradient of exactly zero, whatever the masked logit holds."""
    run = jax.value_and_grad(loss)
    value, gradient = run(LOGITS.at[4].set(hidden), TARGETS["soft"], ACTIVE, 2.0)
    small, small_gradient = run(LOGITS[:4], TARGETS["soft"][:4], None, 2.0)
    assert float(value) == pytest.approx(float(small), rel=1e-14)
    np.testing.assert_allclose(gradient[:4], small_gradient, atol=1e-15)
    assert gradient[4] == 0


def test_a_masked_output_has_probability_zero_and_the_rest_share_one():
    p = probabilities(LOGITS, ACTIVE, 2.0)
    assert p[4] == 0
    assert float(p.sum()) == pytest.approx(1, rel=1e-14)


@every
def test_with_no_output_active_value_and_gradient_are_zero(loss):
    value, gradient = jax.value_and_grad(loss)(LOGITS, TARGETS["soft"], jnp.zeros(5, bool))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@every
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("active", [None, ACTIVE], ids=["all", "masked"])
def test_output_error_by_hand_is_the_gradient(loss, target, active):
    by_hand = output_error(loss)(LOGITS, target, active, 2.5)
    np.testing.assert_allclose(by_hand, jax.grad(loss)(LOGITS, target, active, 2.5), atol=1e-14)


def test_output_error_of_another_loss_is_its_gradient():
    loss = lambda logits, target, active, temperature: jnp.sum(jnp.where(active, jnp.abs(logits - target), 0.0))
    np.testing.assert_array_equal(output_error(loss)(LOGITS, TARGETS["hard"], ACTIVE, 1.0), [1, -1, 1, 1, 0])


def test_temperature_may_be_traced_and_carries_no_square():
    """At a high temperature ∂L/∂z → (mean of t … ) / T: the gradient falls as 1/T."""
    gradient = jax.jit(lambda t: jax.grad(cross_entropy)(LOGITS, TARGETS["hard"], ACTIVE, t))
    np.testing.assert_allclose(gradient(1e8) * 1e8, [0.25, -0.75, 0.25, 0.25, 0.0], atol=1e-6)


def test_large_logits_neither_overflow_nor_hide_a_nan():
    huge = jnp.array([1e300, -1e300])
    assert float(cross_entropy(huge, jnp.array([1.0, 0.0]))) == 0
    assert np.isnan(cross_entropy(huge.at[0].set(jnp.nan), jnp.array([1.0, 0.0])))


@every
def test_a_loss_keeps_the_dtype_of_its_logits(loss):
    assert loss(LOGITS.astype(jnp.float32), TARGETS["soft"], ACTIVE, 2.0).dtype == jnp.float32


@pytest.mark.parametrize(
    ("logits", "target", "active", "expected"),
    [
        ([1.0, 3.0, 2.0], 1, [1, 1, 1], True),
        ([1.0, 3.0, 2.0], 2, [1, 1, 1], False),
        ([1.0, 3.0, 2.0], 2, [1, 0, 1], True),  # the larger output is out of play
        ([1.0, 3.0, 2.0], 1, [1, 0, 1], False),  # the target is
        ([1.0, 3.0, 2.0], 0, [0, 0, 0], False),  # padding
        ([np.nan, 3.0, 2.0], 0, [1, 1, 1], False),  # argmax would take the NaN
        ([np.nan, 3.0, 2.0], 1, [0, 1, 1], True),
    ],
)
def test_correct_looks_at_active_outputs_and_never_at_nan(logits, target, active, expected):
    assert bool(correct(jnp.array(logits), jax.nn.one_hot(target, 3), jnp.array(active, bool))) is expected


def batch_of(weight):
    n = len(weight)
    zeros = jnp.zeros(n, jnp.int32)
    target = jnp.tile(TARGETS["soft"], (n, 1))
    return Batch(jnp.zeros((n, 1)), target, jnp.tile(ACTIVE, (n, 1)), jnp.array(weight), jnp.ones(n), zeros, zeros)


@every
def test_mean_loss_is_the_weighted_mean(loss):
    weight, logits = [1.0, 3.0, 0.5], jnp.stack([LOGITS, 2 * LOGITS, -LOGITS])
    each = [float(loss(row, TARGETS["soft"], ACTIVE)) for row in logits]
    assert float(mean_loss(loss, logits, batch_of(weight))) == pytest.approx(
        np.average(each, weights=weight), rel=1e-13
    )


@every
@pytest.mark.parametrize("poison", ["logits", "target", "temperature", "weight"])
def test_a_row_without_weight_adds_exactly_nothing(loss, poison):
    """Also to the gradient, where a NaN in it would survive a product with zero.  A NaN weight counts as none."""
    batch, logits = batch_of([1.0, 0.0]), jnp.stack([LOGITS, LOGITS])
    if poison == "logits":
        logits = logits.at[1].set(jnp.nan)
    else:
        batch = batch._replace(**{poison: getattr(batch, poison).at[1].set(jnp.nan)})
    run = jax.value_and_grad(lambda logits: mean_loss(loss, logits, batch))
    (value, gradient), (alone, alone_gradient) = run(logits), jax.value_and_grad(loss)(LOGITS, TARGETS["soft"], ACTIVE)
    assert value == alone
    np.testing.assert_array_equal(gradient[0], alone_gradient)
    np.testing.assert_array_equal(gradient[1], 0)


@every
def test_with_no_weight_at_all_the_mean_and_its_gradient_are_zero(loss):
    run = jax.value_and_grad(lambda logits: mean_loss(loss, logits, batch_of([0.0, 0.0])))
    value, gradient = run(jnp.stack([LOGITS, LOGITS]))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


ALL = {
    **LOSSES,
    "binary_cross_entropy": binary_cross_entropy,
    "probabilities": lambda logits, target, active=None, temperature=1.0: probabilities(logits, active, temperature),
    "correct": lambda logits, target, active=None, temperature=1.0: correct(logits, target, active),
}
BY_HAND = {f"error of {loss.__name__}": output_error(loss) for loss in (*LOSSES.values(), binary_cross_entropy)}
TAKES_TARGET = {name: f for name, f in (ALL | BY_HAND).items() if name != "probabilities"}
THREE = jnp.array([0.1, 0.2, 0.3])


@pytest.mark.parametrize("of", TAKES_TARGET.values(), ids=TAKES_TARGET)
@pytest.mark.parametrize("target", [1, jnp.int32(1), jnp.ones(1), jnp.ones(2), jnp.ones((2, 3))], ids=np.shape)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_target_of_another_shape_is_refused(of, target, transform):
    with pytest.raises(ValueError, match=r"(?s)ONE example.*one_hot"):
        transform(of)(THREE, target)


@pytest.mark.parametrize("of", (ALL | BY_HAND).values(), ids=ALL | BY_HAND)
@pytest.mark.parametrize("wrong", ["rows", "scalar", "active"])
def test_rows_scalars_and_another_number_of_active_outputs_are_refused(of, wrong):
    logits = {"rows": jnp.ones((2, 3)), "scalar": jnp.ones(()), "active": THREE}[wrong]
    with pytest.raises(ValueError, match=r"(?s)ONE example.*vmap"):
        of(logits, logits, jnp.ones(1, bool) if wrong == "active" else None)


@pytest.mark.parametrize("of", (ALL | BY_HAND).values(), ids=ALL | BY_HAND)
def test_lists_are_read_as_arrays_and_whole_logits_as_real_ones(of):
    by_lists = of([1, 2, 3], [0.5, 0.25, 0.25], [True, True, False])
    by_arrays = of(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.25, 0.25]), jnp.array([True, True, False]))
    np.testing.assert_array_equal(by_lists, by_arrays)


@pytest.mark.parametrize("of", [cross_entropy, binary_cross_entropy, ALL["probabilities"], output_error(cross_entropy)])
@pytest.mark.parametrize("wrong", [0, -1.0, np.nan, np.float32(-1), jnp.float32(0), jnp.ones(3)], ids=repr)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_written_temperature_is_one_positive_number(of, wrong, transform):
    with pytest.raises(ValueError, match="temperature must be one positive number"):
        transform(lambda logits: of(logits, logits, None, wrong))(THREE)
    transform(lambda logits: of(logits, logits, None, jnp.inf))(THREE)


def test_the_check_costs_nothing_where_it_is_traced():
    """No operation of a compiled loss is one of the check."""
    traced = jax.make_jaxpr(squared_error)(THREE, THREE, jnp.ones(3, bool))
    assert {str(eqn.primitive) for eqn in traced.jaxpr.eqns}.isdisjoint({"reduce_and", "convert_element_type", "copy"})
