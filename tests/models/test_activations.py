"""Slopes by hand against differences and jax.grad; potentials against quadrature of the inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import models
from bptoolkit.models import activations
from bptoolkit.models.activations import Activation, slope, steepest

every = pytest.mark.parametrize("g", activations.EXAMPLES, ids=lambda g: g.name)
POINTS = np.array([-40.0, -3.1, -1.0, -0.7, 0.0, 0.3, 1.0, 2.2, 40.0])  # the kinks among them


def derivative(function, a):
    return jax.vmap(jax.grad(function))(a)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: models.mlp(2, 2, activation=g),
        lambda g: models.rate_cell(2, 2, 2, activation=g),
        lambda g: models.conv_cell((4, 4), 2, 2, activation=g),
        lambda g: models.convnet((4, 4), 2, activation=g),
    ],
)
def test_a_name_in_place_of_a_function_is_refused(make):
    with pytest.raises(ValueError, match=r"activation must be a function of numbers, .*, got 'tanh'"):
        make("tanh")


@every
def test_slope_is_the_derivative_that_jax_takes(g):
    """At kinks too.  The tolerance is absolute: at a = 40 autodiff of the sigmoid cancels to 0."""
    np.testing.assert_allclose(g.slope(jnp.array(POINTS)), derivative(g, jnp.array(POINTS)), rtol=1e-13, atol=1e-16)


def test_the_slope_of_a_saturated_sigmoid_is_small_and_not_none():
    """e^−a to rounding, on either side."""
    np.testing.assert_allclose(activations.sigmoid.slope(jnp.array([-40.0, 40.0])), np.exp(-40.0), rtol=1e-15)


@pytest.mark.parametrize("g", [g for g in activations.EXAMPLES if g is not activations.threshold], ids=lambda g: g.name)
def test_slope_is_the_limit_of_differences(g):
    a, h = jnp.array([-3.1, -0.7, 0.3, 0.9, 2.2]), 1e-6
    np.testing.assert_allclose(g.slope(a), (g(a + h) - g(a - h)) / (2 * h), atol=1e-9)  # h² + rounding/h


def test_threshold_has_the_slope_of_the_logistic_not_its_own():
    a = jnp.array(POINTS)
    np.testing.assert_array_equal(activations.threshold(a), POINTS > 0)
    np.testing.assert_allclose(derivative(activations.threshold, a), derivative(jax.nn.sigmoid, a), atol=1e-16)


@every
def test_nan_and_dtype_pass_through(g):
    a = jnp.array([jnp.nan, 0.5], jnp.float32)
    assert np.isnan(g(a)[0])
    assert g(a).dtype == g.slope(a).dtype == jnp.float32


@every
def test_steepest_bounds_every_slope_and_is_reached(g):
    grid = g.slope(jnp.linspace(-40.0, 40.0, 80_001))
    assert float(grid.max()) == pytest.approx(g.steepest, abs=1e-6)  # the top is missed by 5e-4, squared


def test_plain_functions_are_differentiated_where_no_slope_is_written():
    by_hand, plain = activations.gelu, lambda a: activations.gelu(a)
    np.testing.assert_allclose(slope(plain, jnp.array(POINTS)), by_hand.slope(jnp.array(POINTS)), atol=1e-15)
    assert float(steepest(plain)) == pytest.approx(by_hand.steepest, abs=1e-6)  # a grid of step 1e-3


INVERSES = {
    "tanh": (np.arctanh, (-0.9, 0.4)),
    "sigmoid": (lambda z: np.log(z / (1 - z)), (0.2, 0.9)),
    "piecewise_linear": (lambda z: z, (-0.9, 0.4)),
    "relu": (lambda z: z, (0.1, 3.0)),
    "identity": (lambda z: z, (-2.0, 3.0)),
}


@pytest.mark.parametrize("g", [g for g in activations.EXAMPLES if g.potential is not None], ids=lambda g: g.name)
def test_potential_is_the_integral_of_the_inverse(g: Activation):
    inverse, (low, high) = INVERSES[g.name]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    area = (high - low) / 2 * weights @ inverse((high - low) / 2 * nodes + (high + low) / 2)
    assert g.potential is not None
    assert float(g.potential(jnp.array(high)) - g.potential(jnp.array(low))) == pytest.approx(area, abs=1e-10)


@pytest.mark.parametrize("g", [activations.tanh, activations.sigmoid], ids=lambda g: g.name)
def test_potential_is_zero_at_zero_and_finite_at_the_ends_of_the_range(g):
    assert float(g.potential(jnp.array(0.0))) == 0
    assert np.isfinite(g.potential(jnp.array([0.0, 1.0]))).all()
