"""Flax modules as models: what Flax computes, Flax's own gradient, one draw per seed, and refusals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from bptoolkit.fixed_point import Stop, implicit, unrolled
from bptoolkit.models import cell_from_linen, cell_from_nnx, equilibrium, from_linen, from_nnx, mlp

X = jnp.linspace(-1.0, 1.0, 4)
Z = jax.ShapeDtypeStruct((5,), float)


class NNXNet(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [nnx.Linear(4, 6, param_dtype=float, rngs=rngs), nnx.Linear(6, 3, param_dtype=float, rngs=rngs)]
        )

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3, param_dtype=float)(jnp.tanh(linen.Dense(6, param_dtype=float)(x)))


class NNXStep(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.recurrent = nnx.Linear(5, 5, param_dtype=float, rngs=rngs, kernel_init=jax.nn.initializers.orthogonal(0.4))
        self.input = nnx.Linear(4, 5, param_dtype=float, rngs=rngs)

    def __call__(self, x, z):
        return jnp.tanh(self.recurrent(z) + self.input(x))


class LinenStep(linen.Module):
    @linen.compact
    def __call__(self, x, z):
        recurrent = linen.Dense(5, param_dtype=float, kernel_init=jax.nn.initializers.orthogonal(0.4))
        return jnp.tanh(recurrent(z) + linen.Dense(5, param_dtype=float)(x))


def nnx_case():
    def reference(params, x):
        module = NNXNet(rngs=nnx.Rngs(0))
        state = nnx.state(module)
        nnx.replace_by_pure_dict(state, params)
        nnx.update(module, state)
        return module(x)

    return from_nnx(NNXNet), reference


def linen_case():
    return from_linen(LinenNet(), X), lambda params, x: LinenNet().apply({"params": params}, x)


every = pytest.mark.parametrize("case", [nnx_case, linen_case], ids=["nnx", "linen"])


@every
def test_answers_as_flax_does(case, key):
    model, reference = case()
    params = model.init(key)
    np.testing.assert_array_equal(model.apply(params, X)[0], reference(params, X))


@every
def test_gradient_is_that_of_flax(case, key):
    model, reference = case()
    params = model.init(key)
    ours = jax.grad(lambda params: jnp.sum(jnp.square(model.apply(params, X)[0])))(params)
    flax = jax.grad(lambda params: jnp.sum(jnp.square(reference(params, X))))(params)
    chex.assert_trees_all_close(ours, flax, atol=1e-14)


def test_nnx_draws_the_parameters_that_its_module_draws():
    params = from_nnx(NNXNet).init(jax.random.key(3))
    chex.assert_trees_all_equal(params, nnx.to_pure_dict(nnx.state(NNXNet(rngs=nnx.Rngs(jax.random.key(3))))))


def test_linen_draws_the_parameters_that_its_module_draws():
    params = from_linen(LinenNet(), X).init(jax.random.key(3))
    chex.assert_trees_all_equal(params, LinenNet().init(jax.random.key(3), X)["params"])


@every
def test_seeds_are_drawn_by_vmap(case):
    model, _ = case()
    together = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), 3))
    alone = model.init(jax.random.split(jax.random.key(0), 3)[1])
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], together), alone, atol=1e-15)


@every
def test_parameters_are_plain_dicts_of_arrays(case, key):
    params = case()[0].init(key)
    assert type(params) is dict
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def readout(rngs):
    return nnx.Linear(5, 3, param_dtype=float, rngs=rngs)


CELLS = {
    "nnx": lambda: cell_from_nnx(NNXStep, Z, readout),
    "linen": lambda: cell_from_linen(LinenStep(), X, Z, linen.Dense(3, param_dtype=float)),
    "bare": lambda: cell_from_nnx(NNXStep, Z),
}


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_a_module_settles_as_the_step_of_a_cell(make, key):
    cell = make()
    params = cell.init(key)

    def gradient(relax):
        model = equilibrium(cell, relax)
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(model.apply(params, X)[0]))))(params)

    chex.assert_trees_all_close(gradient(implicit(stop=Stop(rtol=1e-13))), gradient(unrolled(80)), atol=1e-10)


def test_step_and_readout_draw_apart(key):
    """Each begins with the same layer: of one key, it would have the same weights in both."""
    orthogonal = jax.nn.initializers.orthogonal(0.4)
    layer = lambda rngs: nnx.Linear(5, 5, param_dtype=float, rngs=rngs, kernel_init=orthogonal)
    params = cell_from_nnx(NNXStep, Z, layer).init(key)
    assert jnp.abs(params["step"]["recurrent"]["kernel"] - params["readout"]["kernel"]).max() > 0.1


def test_a_cell_without_readout_shows_its_state(key):
    cell = cell_from_nnx(NNXStep, Z)
    np.testing.assert_array_equal(cell.readout(cell.init(key), jnp.arange(5.0)), jnp.arange(5.0))


NNX_WITH_STATE = {
    "mean": lambda rngs: nnx.BatchNorm(4, rngs=rngs),
    "rngs.count": lambda rngs: nnx.Dropout(0.5, rngs=rngs),
}


@pytest.mark.parametrize("path", NNX_WITH_STATE)
def test_nnx_modules_with_state_are_refused_by_the_name_of_the_state(path):
    with pytest.raises(ValueError, match=rf"state beside its parameters: .*{path}[^\n]*\nOnly stateless"):
        from_nnx(NNX_WITH_STATE[path])


LINEN_WITH_STATE = {
    "variables beside its parameters: batch_stats": linen.BatchNorm(use_running_average=True),
    "needs a random stream": linen.Dropout(0.5, deterministic=False),
}


@pytest.mark.parametrize("sentence", LINEN_WITH_STATE)
def test_linen_modules_with_state_are_refused(sentence):
    with pytest.raises(ValueError, match=sentence):
        from_linen(LINEN_WITH_STATE[sentence], X.astype(jnp.float32))


def test_a_built_module_is_refused_because_seeds_draw_their_own():
    with pytest.raises(TypeError, match=r"a factory that takes nnx\.Rngs"):
        from_nnx(NNXNet(rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (lambda: from_nnx(lambda rngs: 3), TypeError, r"returns an nnx\.Module; got one of int"),
        (lambda: from_nnx(mlp(3, 2)), TypeError, r"a factory that takes nnx\.Rngs and returns a module; got Model"),
        (lambda: from_linen(3, jnp.zeros(2)), TypeError, "a Linen module, such as Net.*; got int"),
        (lambda: from_linen(LinenNet, jnp.zeros(2)), TypeError, "a Linen module, such as Net.*; got LinenNet"),
        (lambda: cell_from_nnx(NNXNet, 4), ValueError, r"floating numbers, .* got int\d+ of shape \(\)"),
        (lambda: cell_from_nnx(NNXNet, (4,)), ValueError, r"floating numbers, .* got int\d+ of shape \(\)"),
    ],
)
def test_what_is_no_module_and_no_state_is_refused(build, error, sentence):
    with pytest.raises(error, match=sentence):
        build()
