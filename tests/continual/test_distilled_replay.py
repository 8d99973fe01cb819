"""DER and DER++: the loss that their rows make, against the paper's equations differentiated as they stand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.continual.streams import spec
from bptoolkit.fixed_point import Stop, almeida_pineda, implicit, picard
from bptoolkit.learning.losses import output_error
from bptoolkit.models import equilibrium, mlp, rate_cell

TIGHT = Stop(rtol=1e-12)
RELAX = implicit(picard(), almeida_pineda(stop=TIGHT), TIGHT)
NETS = {"static": mlp(4, 5, 6), "recurrent": equilibrium(rate_cell(4, 5, 6), RELAX)}
ALPHA, BETA = 0.7, 0.4


def filled(learner, stream, rows_of_task):
    """A memory that 12 rows came by, the weights before the step with each, those after it, and rows of task 2."""
    indices = jax.jit(stream.draw)(jax.random.key(0))
    old, now = (learner.model.init(jax.random.key(seed)) for seed in (1, 2))
    memory = learner.init(old, spec(stream), jax.random.key(0))
    batch = lambda task: rows_of_task(stream, indices, task, jnp.arange(4, dtype=jnp.int32))
    after = jax.jit(lambda memory, batch, key: learner.after_step(memory, old, now, (), batch, key)[2])
    for i in range(3):
        memory = after(memory, batch(i), jax.random.key(i))
    return memory, old, now, batch(2)


def watched(learner):
    seen = []

    def gradient(memory, params, batch, key):
        seen.append(batch)
        return learner.gradient(memory, params, batch, key)

    return learner._replace(gradient=gradient), seen


@pytest.mark.parametrize("model", NETS.values(), ids=NETS)
def test_the_rows_make_the_loss_of_the_paper(clouds_by_task, rows_of_task, model):
    """CE(now) + α mean (o − z)² + β CE(stored), written out over the rows that were drawn, by autodiff."""
    rule, seen = watched(learning.backprop(model))
    learner = cl.der_plus_plus(6, ALPHA, BETA, rows=3)(rule)
    memory, old, now, batch = filled(learner, clouds_by_task, rows_of_task)
    both = jax.jit(lambda *given: (learner.gradient(*given), seen[-1]))
    (found, info, _), rows = both(memory, now, batch, jax.random.key(5))
    assert rows.x.shape[0] == 4 + 3 + 3
    assert jnp.isinf(rows.temperature).tolist() == [False] * 4 + [True] * 3 + [False] * 3
    assert rows.index[4:7].tolist() != rows.index[7:].tolist()  # two draws
    logits = jax.jit(jax.vmap(lambda params, x: model.apply(params, x)[0], (None, 0)))
    stored = logits(old, rows.x[4:7])
    np.testing.assert_allclose(rows.target[4:7], stored, atol=1e-9)  # as they were when the rows came by

    def loss(params):
        o = jax.vmap(lambda x: model.apply(params, x)[0])(rows.x)
        crossed = -jnp.sum(rows.target * jax.nn.log_softmax(o), axis=1)
        return jnp.mean(crossed[:4]) + ALPHA * jnp.mean((o[4:7] - stored) ** 2) + BETA * jnp.mean(crossed[7:])

    value, expected = jax.jit(jax.value_and_grad(loss))(now)
    np.testing.assert_allclose(info.loss, value, rtol=1e-9)
    chex.assert_trees_all_close(found, expected, atol=1e-9)


def test_der_is_der_plus_plus_without_beta(clouds_by_task, rows_of_task):
    """And with α = 0 too it is naive training."""
    rule = learning.backprop(NETS["static"])
    gradient = lambda strategy: _gradient(strategy(rule), clouds_by_task, rows_of_task)
    plain = gradient(cl.der(6, ALPHA))
    assert _furthest(plain, gradient(cl.der_plus_plus(6, ALPHA, BETA))) > 1e-4
    _, _, now, batch = filled(cl.der(6, 0.0)(rule), clouds_by_task, rows_of_task)
    naive = jax.jit(rule.gradient)((), now, batch, jax.random.key(0))[0]
    chex.assert_trees_all_close(gradient(cl.der(6, 0.0)), naive, atol=1e-12)
    chex.assert_trees_all_close(gradient(cl.der_plus_plus(6, 0.0, 0.0)), naive, atol=1e-12)
    assert _furthest(plain, naive) > 1e-4


def _gradient(learner, stream, rows_of_task):
    memory, _, now, batch = filled(learner, stream, rows_of_task)
    return jax.jit(learner.gradient)(memory, now, batch, jax.random.key(5))[0]


def _furthest(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_strengths_are_traced(clouds_by_task):
    """Two of them under vmap, in one program."""
    rule = learning.backprop(NETS["static"])
    init = lambda alpha: cl.der(6, alpha)(rule).init(
        NETS["static"].init(jax.random.key(0)), spec(clouds_by_task), jax.random.key(0)
    )
    np.testing.assert_array_equal(jax.vmap(lambda a: init(a).alpha)(jnp.array([0.1, 0.9])), [0.1, 0.9])


@pytest.mark.parametrize("loss", [learning.cross_entropy, learning.binary_cross_entropy, learning.squared_error])
def test_rows_of_infinite_temperature_match_logits_under_every_loss(loss):
    """½ Σ (t − o)² over active outputs, its error by hand and by autodiff; no NaN from the branch that is not taken."""
    o, t = jnp.array([1.0, -2.0, 900.0, 3.0]), jnp.array([0.5, 1.0, -800.0, jnp.nan])
    active = jnp.array([True, True, True, False])
    value, slope = jax.jit(jax.value_and_grad(loss))(o, t, active, jnp.inf)
    assert value == 0.5 * (0.5**2 + 3.0**2 + 1700.0**2)
    np.testing.assert_allclose(slope, [0.5, -3, 1700, 0])
    np.testing.assert_allclose(output_error(loss)(o, t, active, jnp.inf), [0.5, -3, 1700, 0])


def test_der_forgets_less_than_naive_training(clouds_by_task):
    """The point of it, on easy clouds and without being told the tasks."""
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 6, 10, 4, spread=0.3), 2)
    rule = learning.backprop(mlp(4, 16, 6))
    run = lambda learner: cl.run(
        cl.Experiment(stream, learner, optax.sgd(0.2), steps=40, batch=10), jax.random.key(0), seeds=2
    )
    naive, dark = run(rule), run(cl.der_plus_plus(30, 0.5, 1.0)(rule))
    assert cl.forgetting(dark).mean() < cl.forgetting(naive).mean() - 0.3


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.der(0, 0.5), "capacity must be at least 1"),
        (lambda: cl.der(6, -0.5), "alpha must be at least 0, got -0.5"),
        (lambda: cl.der_plus_plus(6, 0.5, -1.0), "beta must be at least 0, got -1.0"),
    ],
)
def test_bad_numbers_are_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
