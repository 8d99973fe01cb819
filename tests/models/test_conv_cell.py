"""The convolutional cell: against XLA's convolution, its contraction, and how it moves with the image."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bptoolkit.fixed_point import Status, Stop, implicit, solve, unrolled
from bptoolkit.models import activations, equilibrium
from bptoolkit.models.conv_cell import conv_cell

TIGHT = Stop(rtol=1e-13)


def conv(h, w, stride=1):
    """XLA's own convolution of one image."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(h[None], w, (stride, stride), "SAME", dimension_numbers=numbers)[0]


def image(shape):
    return jnp.sin(jnp.arange(float(np.prod(shape)))).reshape(shape)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 3)])
def test_step_is_two_convolutions(kernel, stride, key):
    cell = conv_cell((7, 8, 2), 3, 4, kernel=kernel, stride=stride)
    params, x = cell.init(key), image((7, 8, 2))
    assert cell.state.shape == (-(-7 // stride), -(-8 // stride), 3)
    z = jnp.cos(image(cell.state.shape))
    expected = jnp.tanh(conv(z, params["w"]) + conv(x, params["u"], stride) + params["b"])
    chex.assert_trees_all_close(cell.step(params, x, z), expected, atol=1e-12)
    chex.assert_trees_all_equal(cell.step(params, x, z), cell.respond(params, cell.drive(params, x), z))


BY_TWO = [(slice(i, i + 2), slice(j, j + 2)) for i in (0, 2) for j in (0, 2, 4)]


@pytest.mark.parametrize(("pool", "windows"), [(None, [(slice(4), slice(6))]), (2, BY_TWO)], ids=["whole", "two"])
def test_readout_is_dense_on_the_means_of_windows(pool, windows, key):
    cell = conv_cell((4, 6), 3, 5, pool=pool)
    params, z = cell.init(key), image((4, 6, 3))
    means = np.concatenate([np.asarray(z)[rows, columns].mean((0, 1)) for rows, columns in windows])
    chex.assert_trees_all_close(cell.readout(params, z), means @ params["v"] + params["c"], atol=1e-12)


@pytest.mark.parametrize(("kernel", "g"), [(1, activations.tanh), (2, activations.tanh), (3, activations.sigmoid)])
def test_step_starts_as_a_contraction_by_its_gain(kernel, g, key):
    """The whole linear map as a matrix, with its singular values by NumPy."""
    cell = conv_cell((5, 6), 3, 2, kernel=kernel, activation=g, gain=0.8)
    w = cell.init(key)["w"]
    matrix = jax.jacobian(lambda z: conv(z, w))(jnp.zeros((5, 6, 3))).reshape(90, 90)
    norm = np.linalg.norm(np.asarray(matrix), 2) * g.steepest
    assert norm <= 0.8 + 1e-12
    assert norm > 0.2  # and it is not just nearly nothing
    if kernel == 1:
        assert norm == pytest.approx(0.8, rel=1e-10)  # one window a state: the bound is reached


def test_weights_start_within_the_root_of_the_inputs_of_their_units(key):
    """1/√36 for windows of 2 × 2 pixels of 9 colours, 1/√400 for outputs that hear 4 means of 100 channels."""
    params = conv_cell((8, 8, 9), 100, 100, kernel=2, pool=4).init(key)
    for names, bound in (("ub", 1 / 6), ("vc", 1 / 20)):
        for name in names:
            assert 0.9 * bound < jnp.abs(params[name]).max() <= bound


def blob(row, column, size=14):
    """A bright patch of two by two on black."""
    return jnp.zeros((size, size)).at[row : row + 2, column : column + 2].set(1.0)


def test_states_and_outputs_move_with_the_image_away_from_the_border(key):
    """Without biases black is state zero; influence fades by 0.3 a step at least, so the border hardly matters."""
    cell = conv_cell((14, 14), 3, 4, gain=0.3)
    params = cell.init(key) | {"b": jnp.zeros(3)}
    settle = lambda x: solve(lambda z: cell.step(params, x, z), jnp.zeros((14, 14, 3)), stop=TIGHT).value
    here, there = settle(blob(5, 5)), settle(blob(7, 6))
    assert jnp.abs(here - there).max() > 1e-2
    chex.assert_trees_all_close(jnp.roll(here, (2, 1), (0, 1)), there, atol=1e-4)
    chex.assert_trees_all_close(cell.readout(params, here), cell.readout(params, there), atol=1e-5)
    cut = settle(blob(0, 0))  # negative control: in a corner part of the pattern is missing
    assert jnp.abs(jnp.roll(here, (-5, -5), (0, 1)) - cut).max() > 1e-2


def test_three_steps_move_exactly_with_the_image(key):
    """Three steps of kernel 3 reach four pixels far, so the border cannot be felt in the middle."""
    cell = conv_cell((14, 14), 3, 4)
    params = cell.init(key) | {"b": jnp.zeros(3)}

    def three(x):
        z = jnp.zeros((14, 14, 3))
        for _ in range(3):
            z = cell.step(params, x, z)
        return z

    chex.assert_trees_all_close(jnp.roll(three(blob(5, 5)), (2, 1), (0, 1)), three(blob(7, 6)), atol=1e-15)


def test_gradient_equals_backpropagation_through_time(key):
    cell = conv_cell((6, 6), 2, 3, pool=3)
    params, x = cell.init(key), image((6, 6))

    def gradient(relax):
        model = equilibrium(cell, relax)
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(model.apply(params, x)[0]))))(params)

    chex.assert_trees_all_close(gradient(implicit(stop=TIGHT)), gradient(unrolled(60)), atol=1e-12)


def test_an_image_may_come_flat(key):
    model = equilibrium(conv_cell((6, 5), 2, 3))
    params, x = model.init(key), image((6, 5))
    (logits, info), (flat, _) = model.apply(params, x), model.apply(params, x.ravel())
    chex.assert_trees_all_equal(logits, flat)
    assert info.forward.status == Status.CONVERGED


@pytest.mark.parametrize(
    ("shape", "options", "sentence"),
    [
        ((28,), {}, "conv_cell needs a shape"),
        ((8, 8), {"kernel": 0}, "one or more"),
        ((8, 8), {"pool": 0}, "one or more"),
        ((8, 8), {"pool": 3}, "pool must divide height and width of the state, 8 and 8, got 3"),
        (64, {}, r"conv_cell needs a shape \(height, width\)"),
        ((8, 8), {"gain": 0.0}, "gain must be positive and finite"),
        ((8, 8), {"gain": float("inf")}, "gain must be positive and finite"),
        ((8, 8), {"gain": "small"}, "gain must be positive and finite, got small"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        conv_cell(shape, 2, 10, **options)


def test_another_image_is_refused(key):
    cell = conv_cell((6, 5), 2, 3)
    with pytest.raises(ValueError, match="one image of shape"):
        cell.drive(cell.init(key), jnp.ones((5, 6)))
