"""A network of dense layers against the same sums written in NumPy, and its gradient against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bptoolkit.models import activations, mlp, uniform_fan_in


def test_output_is_the_weighted_sum_layer_by_layer(key):
    model = mlp(4, 3, 2, activation=activations.tanh)
    (one, two), x = jax.tree.map(np.asarray, model.init(key)), np.linspace(-1, 1, 4)
    hidden = [np.tanh(sum(x[i] * one["w"][i, j] for i in range(4)) + one["b"][j]) for j in range(3)]
    expected = [sum(hidden[i] * two["w"][i, j] for i in range(3)) + two["b"][j] for j in range(2)]
    np.testing.assert_allclose(model.apply((one, two), jnp.array(x))[0], expected, rtol=1e-14)


@pytest.mark.parametrize("g", [activations.tanh, activations.gelu, activations.sigmoid], ids=lambda g: g.name)
def test_gradient_is_the_limit_of_differences(g, key):
    model = mlp(4, 5, 3, 2, activation=g)
    flat, unravel = ravel_pytree(model.init(key))
    loss = jax.jit(lambda flat: jnp.sum(jnp.square(model.apply(unravel(flat), jnp.linspace(-1.0, 1.0, 4))[0])))
    h, directions = 1e-5, jnp.eye(flat.size)
    difference = jax.vmap(lambda e: (loss(flat + h * e) - loss(flat - h * e)) / (2 * h))(directions)
    np.testing.assert_allclose(jax.grad(loss)(flat), difference, atol=1e-9)  # h² and rounding/h are both about 1e-10


def test_images_are_flattened(key):
    model = mlp(6, 2)
    params, image = model.init(key), jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(model.apply(params, image)[0], model.apply(params, image.ravel())[0])


def test_weights_and_biases_start_uniform_within_one_over_root_fan_in(key):
    (layer,) = mlp(400, 300).init(key)
    for values in layer.values():
        assert float(jnp.abs(values).max()) <= 400**-0.5
    assert float(layer["w"].var() * 3 * 400) == pytest.approx(1, abs=0.02)  # 120,000 draws: 5 deviations are 0.013
    assert float(jnp.abs(layer["b"]).min()) > 0


def test_layers_draw_apart(key):
    one, two = mlp(5, 5, 5).init(key)
    assert not np.allclose(one["w"], two["w"])


def test_seeds_draw_apart(key):
    many = jax.vmap(mlp(5, 5).init)(jax.random.split(key, 3))[0]["w"]
    assert np.unique(many[:, 0, 0]).size == 3


def test_init_may_be_replaced(key):
    params = mlp(3, 2, init=lambda key, shape, fan_in: jnp.full(shape, float(fan_in))).init(key)
    np.testing.assert_array_equal(params[0]["w"], np.full((3, 2), 3.0))


def test_uniform_fan_in_takes_the_default_float_type(key):
    assert uniform_fan_in(key, (2,), 2).dtype == jnp.result_type(float)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((4,), "sizes of input and output"),
        ((), "sizes of input and output"),
        ((4, 0, 2), "one or more"),
        ((4, 2.5), "one or more"),
        ((True, 3), "one or more, as integers, got True"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        mlp(*sizes)


def test_a_batch_in_place_of_one_example_is_refused(key):
    model = mlp(4, 2)
    with pytest.raises(ValueError, match=r"one example of 4 numbers, got shape \(3, 4\)"):
        model.apply(model.init(key), jnp.ones((3, 4)))
