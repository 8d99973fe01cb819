"""The backward sweep by hand against jax.grad: of the weights, and of a zero added to every unit's input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import Status, Stop, almeida_pineda, dense, gmres, implicit, picard
from bptoolkit.learning.attribution import attribution, weight_gradient
from bptoolkit.learning.losses import cross_entropy, squared_error
from bptoolkit.models import activations, cell_from_nnx, convnet, equilibrium, from_linen, hopfield_cell, mlp, rate_cell
from bptoolkit.types import Model

TARGET = jnp.array([0.2, 0.7, 0.1])
ACTIVE = jnp.array([True, True, False])
X = jnp.array([0.3, -1.0, 0.7, 0.2])
IMAGE = jnp.sin(jnp.arange(30.0)).reshape(6, 5)
TIGHT = Stop(rtol=1e-13)

ACTIVATIONS = (*activations.EXAMPLES, jax.nn.silu)
LAYERED = {f"mlp-{getattr(g, 'name', 'plain')}": (mlp(4, 5, 6, 3, activation=g), X) for g in ACTIVATIONS}
LAYERED |= {
    "convnet": (convnet((6, 5), 3, channels=(2, 3), hidden=(4,), activation=activations.tanh), IMAGE),
    "linear": (mlp(4, 3), X),
}
SETTLED = {
    "rate": rate_cell(4, 6, 3),
    "rate-sigmoid": rate_cell(4, 6, 3, activation=activations.sigmoid, gain=0.8),
    "hopfield": hopfield_cell(4, 6, 3),
}


def pushed_layers(model, pushes, params, x):
    """The model with one push added to each unit's input."""
    h = x
    for layer, p, push in zip(model.layers, params, pushes, strict=True):
        h = layer.activation(layer.linear(p, h) + push)
    return h


@functools.cache
def attributed(name):
    """One layered model at work, in one compiled program: ours, then what `jax.grad` finds."""
    model, x = LAYERED[name]

    def work(params):
        found = attribution(model, params, x, TARGET, ACTIVE)
        pushes = tuple(jnp.zeros_like(h) for h in found.activations[1:])
        loss = lambda pushes: cross_entropy(pushed_layers(model, pushes, params, x), TARGET, ACTIVE)
        whole = lambda params: cross_entropy(model.apply(params, x)[0], TARGET, ACTIVE)
        ours = {"errors": found.errors, "weights": weight_gradient(model, params, found), "loss": found.loss}
        return ours, {"errors": jax.grad(loss)(pushes), "weights": jax.grad(whole)(params), "loss": whole(params)}

    return jax.jit(work)(model.init(jax.random.key(0)))


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("part", ["errors", "weights", "loss"])
def test_backward_sweep_is_what_jax_finds(name, part):
    """`errors`: the gradient of a push on each unit's input."""
    ours, by_jax = attributed(name)
    chex.assert_trees_all_close(ours[part], by_jax[part], atol=1e-14)


def settled_model(cell):
    """Differentiated by elimination, so that what is relaxed backwards is held against something else."""
    return equilibrium(cell, implicit(picard(), dense(), TIGHT))


@pytest.mark.parametrize(
    ("name", "loss"),
    [*((name, cross_entropy) for name in SETTLED), ("rate", squared_error)],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_settled_weight_gradient_is_that_of_jax(name, loss, key):
    model, adjoint = settled_model(SETTLED[name]), almeida_pineda(stop=TIGHT)
    params = model.init(key)
    found = jax.jit(lambda p: attribution(model, p, X, TARGET, ACTIVE, loss, temperature=2.0, adjoint=adjoint))(params)
    gradient = jax.jit(jax.grad(lambda p: loss(model.apply(p, X)[0], TARGET, ACTIVE, 2.0)))(params)
    chex.assert_trees_all_close(weight_gradient(model, params, found), gradient, atol=1e-10)
    assert found.backward.status == Status.CONVERGED


@pytest.mark.parametrize("name", SETTLED)
def test_settled_errors_are_the_gradient_of_a_current_inside_and_outside(name, key):
    cell = SETTLED[name]
    model = settled_model(cell)
    params = model.init(key)
    found = attribution(model, params, X, TARGET, ACTIVE, adjoint=almeida_pineda(stop=TIGHT))

    def loss(inside, outside):
        pushed = cell._replace(
            drive=lambda params, x: cell.drive(params, x) + inside,
            respond=lambda params, d, z: cell.respond(params, d, z) + outside,
        )
        pushed = pushed._replace(step=lambda p, x, z: pushed.respond(p, pushed.drive(p, x), z))
        return cross_entropy(settled_model(pushed).apply(params, X)[0], TARGET, ACTIVE)

    inside, outside = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros(6), jnp.zeros(6))
    np.testing.assert_allclose(found.errors[0], inside, atol=1e-10)
    np.testing.assert_allclose(found.backward.value, outside, atol=1e-10)


def test_rate_cell_follows_almeida_and_pineda_written_in_numpy(key):
    """z = (Lᵀ)⁻¹ J with L_ij = δ_ij − g′(u_i) w_ij, and Δw_rs ∝ g′(u_r) z_r x_s, by a dense solve."""
    model = settled_model(SETTLED["rate"])
    params = model.init(key)
    found = attribution(model, params, X, TARGET, None, squared_error, adjoint=almeida_pineda(stop=TIGHT))
    p, z = jax.tree.map(np.asarray, params), np.asarray(found.activations[1])
    w = p["w"].T  # the papers' w_ij leads from j to i
    slope = 1 - np.tanh(w @ z + p["u"].T @ np.asarray(X) + p["b"]) ** 2
    output = np.asarray(found.logits - TARGET)
    lam = np.linalg.solve((np.eye(6) - slope[:, None] * w).T, p["v"] @ output)
    np.testing.assert_allclose(found.backward.value, lam, atol=1e-10)
    np.testing.assert_allclose(found.errors[0], slope * lam, atol=1e-10)
    gradient = weight_gradient(model, params, found)
    np.testing.assert_allclose(gradient["w"], np.outer(slope * lam, z).T, atol=1e-10)
    np.testing.assert_allclose(gradient["v"], np.outer(z, output), atol=1e-10)


def test_a_network_that_is_not_transposed_gives_another_error(key):
    """Negative control: λ = Jλ + g, with J in place of Jᵀ, is far off, so the oracles above can tell."""
    model = settled_model(SETTLED["rate"])
    params = model.init(key)
    adjoint = almeida_pineda(stop=TIGHT)
    z = model.cell.settle(params, X).value
    forward = jax.linearize(lambda z: model.cell.step(params, X, z), z)[1]
    right = attribution(model, params, X, TARGET, adjoint=adjoint)
    wrong = attribution(model, params, X, TARGET, adjoint=lambda matvec, g, **known: adjoint(forward, g))
    gap = np.linalg.norm(wrong.errors[0] - right.errors[0]) / np.linalg.norm(right.errors[0])
    assert gap > 0.05


def test_a_layer_that_is_not_transposed_gives_another_error(key):
    """Negative control for the feed-forward sweep, on a square layer, where the shapes would let it pass."""
    model = mlp(4, 3, 3, activation=activations.tanh)
    params = model.init(key)
    found = attribution(model, params, X, TARGET)
    slope = 1 - found.activations[1] ** 2
    np.testing.assert_allclose(found.errors[0], slope * (params[1]["w"] @ found.errors[1]), atol=1e-15)
    wrong = slope * (params[1]["w"].T @ found.errors[1])
    assert np.linalg.norm(wrong - found.errors[0]) > 0.05 * np.linalg.norm(found.errors[0])


def test_the_adjoint_may_be_chosen(key):
    model = settled_model(SETTLED["rate"])
    params = model.init(key)
    by_relaxing = attribution(model, params, X, TARGET, adjoint=almeida_pineda(stop=TIGHT))
    by_elimination = attribution(model, params, X, TARGET, adjoint=dense())
    np.testing.assert_allclose(by_relaxing.errors[0], by_elimination.errors[0], atol=1e-10)


def test_a_cell_without_a_drive_shows_the_error_of_a_current_outside(key):
    cell = SETTLED["rate"]._replace(drive=None, respond=None)
    found = attribution(settled_model(cell), cell.init(key), X, TARGET)
    np.testing.assert_array_equal(found.errors[0], found.backward.value)


def test_another_loss_is_differentiated(key):
    model, x = LAYERED["mlp-tanh"]
    params = model.init(key)
    cubic = lambda logits, target, active, temperature: jnp.sum((logits - target) ** 3) / temperature
    found = attribution(model, params, x, TARGET, None, cubic, temperature=2.0)
    np.testing.assert_allclose(found.errors[-1], 1.5 * (found.logits - TARGET) ** 2, rtol=1e-13)


@pytest.mark.parametrize("model", [LAYERED["mlp-tanh"][0], settled_model(SETTLED["rate"])], ids=["layered", "settled"])
def test_a_batch_goes_through_vmap(model, key):
    """And the mean of the examples' gradients is the gradient of the mean loss."""
    params, xs = model.init(key), jnp.stack([X, -X, 2 * X])
    one = lambda x: weight_gradient(model, params, attribution(model, params, x, TARGET))
    mean = jax.tree.map(lambda leaf: leaf.mean(0), jax.jit(jax.vmap(one))(xs))
    loss = lambda params: jax.vmap(lambda x: cross_entropy(model.apply(params, x)[0], TARGET))(xs).mean()
    chex.assert_trees_all_close(mean, jax.jit(jax.grad(loss))(params), atol=1e-7)  # each adjoint to its own 1e-8


def test_a_model_that_shows_no_units_is_refused(key):
    from flax import linen

    model = from_linen(linen.Dense(3, param_dtype=float), X)
    with pytest.raises(ValueError, match="layers or a settled cell"):
        attribution(model, model.init(key), X, TARGET)


def test_a_cell_that_nothing_settles_is_refused(key):
    cell = SETTLED["rate"]
    model = Model(cell.init, lambda params, x: (x, None), cell=cell)
    with pytest.raises(ValueError, match="layers or a settled cell"):
        attribution(model, model.init(key), X, TARGET)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": SETTLED["rate"]}, "attribution needs a Model, got Cell. Make one of a cell by equilibrium"),
        ({"adjoint": gmres}, "adjoint must be an Adjoint, .*, got gmres"),
        ({"adjoint": "dense"}, "adjoint must be an Adjoint, .*, got str"),
        ({"loss": "ce"}, r"loss must be a function of \(logits, target, active, temperature\), .*, got str"),
        ({"target": 1}, r"(?s)got \(3,\), \(\) and \(3,\).*jax.nn.one_hot"),
    ],
)
def test_what_no_error_comes_of_is_refused(given, sentence, key):
    model = settled_model(SETTLED["rate"])
    asked = {"model": model, "params": model.init(key), "x": X, "target": TARGET} | given
    with pytest.raises(ValueError, match=sentence):
        attribution(**asked)


def test_a_flax_step_has_errors_too(key):
    from flax import nnx

    class Step(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Linear(3, 3, rngs=rngs, param_dtype=float, kernel_init=jax.nn.initializers.orthogonal(0.4))

        def __call__(self, x, z):
            return jnp.tanh(self.w(z) + x[:3])

    model = settled_model(cell_from_nnx(Step, jax.ShapeDtypeStruct((3,), float)))
    params = model.init(key)
    found = attribution(model, params, X, TARGET, adjoint=almeida_pineda(stop=TIGHT))
    gradient = jax.jit(jax.grad(lambda p: cross_entropy(model.apply(p, X)[0], TARGET)))(params)
    chex.assert_trees_all_close(weight_gradient(model, params, found), gradient, atol=1e-10)
