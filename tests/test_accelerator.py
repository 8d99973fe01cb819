"""A GPU or TPU computes what the CPU computes, to the rounding of float32.

`make accelerator` runs these where there is one.  Products are taken at the highest precision: by default they are
TF32 or bfloat16 there, which is an error of 1e-3 and more (docs/policy.md).
"""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from bptoolkit import data, fixed_point, learning, models

pytestmark = pytest.mark.accelerator
UNITS = 64


@pytest.fixture(autouse=True)
def float32():
    """Accelerators have no fast float64; the suite's conftest switches it on."""
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def devices() -> tuple[jax.Device, jax.Device]:
    if jax.default_backend() == "cpu":
        pytest.skip("JAX finds no GPU or TPU here: install the extra [cuda] or [tpu] on a machine that has one.")
    return jax.devices("cpu")[0], jax.devices()[0]


@pytest.fixture
def network():
    """A rate cell whose step contracts by 0.9, with an input, all in float32."""
    cell = models.rate_cell(UNITS, UNITS, 10, gain=0.9)
    params = cell.init(jax.random.key(0))
    return cell, params, jax.random.normal(jax.random.key(1), (UNITS,))


def compare(compute, arguments, devices, **tolerance):
    """The same program on both, each with the arguments on its own device."""
    results = []
    for device in devices:
        with jax.default_device(device):
            results.append(jax.jit(compute)(*jax.device_put(arguments, device)))
        assert {d for leaf in jax.tree.leaves(results[-1]) for d in leaf.devices()} == {device}
        chex.assert_tree_all_finite(results[-1])
    chex.assert_trees_all_close(*(jax.device_get(result) for result in results), **tolerance)


def test_the_fixed_point_is_the_same(devices, network):
    """Both stop within a relative error of rtol of z*, so they are within 2 rtol of each other."""
    cell, params, x = network
    stop = fixed_point.Stop(rtol=1e-4)

    def settled(params, x):
        solution = fixed_point.solve(lambda z: cell.step(params, x, z), jnp.zeros(UNITS, jnp.float32), stop=stop)
        return solution.value / jnp.linalg.norm(solution.value)

    compare(settled, (params, x), devices, rtol=0, atol=2e-4)


@pytest.mark.parametrize("adjoint", [fixed_point.almeida_pineda(), fixed_point.dense()], ids=["relaxed", "dense"])
def test_the_gradient_is_the_same(devices, network, adjoint):
    cell, params, x = network
    model = models.equilibrium(cell, fixed_point.implicit(adjoint=adjoint, stop=fixed_point.Stop(rtol=1e-5)))
    gradient = jax.grad(lambda params, x: model.apply(params, x)[0].sum())
    size = optax.tree.norm(gradient(params, x))

    def scaled(params, x):
        return jax.tree.map(lambda g: g / size, gradient(params, x))

    compare(scaled, (params, x), devices, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["static", "recurrent"])
def test_training_ends_at_the_same_weights(devices, network, kind):
    """Twenty steps of plain descent on a smooth loss, whose rounding errors do not grow."""
    model = models.mlp(UNITS, 32, 10) if kind == "static" else models.equilibrium(network[0])
    made = data.gaussian_classes(jax.random.key(2), classes=10, rows=20, features=UNITS)
    weights = model.init(jax.random.key(3))

    def trained(weights, train, test):
        known = made._replace(train=train, test=test)
        learner = learning.backprop(model)
        step = learning.fit(learner, known, optax.sgd(0.05), jax.random.key(4), steps=20, params=weights)
        return step.params, step.curves.loss

    results = []
    for device in devices:
        with jax.default_device(device):
            results.append(jax.device_get(trained(*jax.device_put((weights, made.train, made.test), device))))
    chex.assert_trees_all_close(*results, rtol=0, atol=1e-3)
    chex.assert_trees_all_equal_shapes_and_dtypes(weights, results[0][0])
