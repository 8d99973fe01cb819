"""Convolutions by patches against XLA's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bptoolkit.models import convnet
from bptoolkit.models.convnet import convolution


@pytest.mark.parametrize(
    ("image", "kernel", "stride"),
    [((7, 8, 2), 3, 2), ((7, 8, 2), 3, 1), ((7, 8, 2), 2, 3), ((3, 5, 1), 4, 3), ((3, 5, 1), 1, 2)],
)
def test_patches_are_the_convolution(image, kernel, stride, key):
    key_h, key_w = jax.random.split(key)
    h = jax.random.normal(key_h, image)
    w = jax.random.normal(key_w, (kernel, kernel, image[2], 3))
    expected = lax.conv_general_dilated(
        h[None], w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    ours = convolution(image, stride)({"w": w, "b": jnp.arange(3.0)}, h)
    np.testing.assert_allclose(ours, expected + jnp.arange(3.0), atol=1e-12)


def test_layers_shrink_by_the_stride_and_end_in_the_outputs(key):
    model = convnet((8, 9), 10, channels=(4, 6), hidden=(7,))
    shapes = [p["w"].shape for p in model.init(key)]
    assert shapes == [(3, 3, 1, 4), (3, 3, 4, 6), (2 * 3 * 6, 7), (7, 10)]
    assert model.layers is not None
    assert [layer.dense for layer in model.layers] == [False, False, True, True]


def test_an_image_may_come_flat_or_without_its_colour_axis(key):
    model = convnet((6, 5), 3, channels=(2,))
    params, image = model.init(key), jnp.sin(jnp.arange(30.0)).reshape(6, 5)
    outputs = [model.apply(params, image.reshape(shape))[0] for shape in [(6, 5), (6, 5, 1), (30,)]]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


@pytest.mark.parametrize("shape", [(5, 6), (3, 6, 5), (30, 1)])
def test_an_image_of_another_shape_is_refused(shape, key):
    model = convnet((6, 5), 3, channels=(2,))
    with pytest.raises(ValueError, match="one image of shape"):
        model.apply(model.init(key), jnp.ones(shape))


@pytest.mark.parametrize(
    ("shape", "options"),
    [((28,), {}), (64, {}), ((2, 2, 2, 2), {}), ((8, 8), {"channels": (0,)}), ((8, 8), {"stride": 0})],
)
def test_sizes_that_do_not_fit_are_refused(shape, options):
    with pytest.raises(ValueError, match="convnet needs"):
        convnet(shape, 10, **options)


@pytest.mark.parametrize("name", ["channels", "hidden"])
def test_one_number_in_place_of_a_tuple_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be a tuple of sizes, .*, got 16. Write \(16,\)"):
        convnet((8, 8), 10, **{name: 16})
