"""The three Fisher informations against per-example `jax.grad`, one row and one label at a time."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import continual as cl
from bptoolkit.continual.fisher import CHUNK, fisher_of_task
from bptoolkit.fixed_point import Stop, almeida_pineda, implicit, picard
from bptoolkit.learning.learner import Task, rows_of
from bptoolkit.models import convnet, equilibrium, mlp, rate_cell
from bptoolkit.types import Info, Model

DENSE = mlp(4, 5, 3)
TIGHT = Stop(rtol=1e-13)
MODELS = {
    "dense layers": DENSE,
    "no layers": Model(
        lambda key: {"a": jax.random.normal(key, (4, 3)), "b": jnp.ones(3)},
        lambda params, x: (jnp.tanh(x @ params["a"]) * params["b"], Info()),
    ),
    "convolution": convnet((2, 2), 3, channels=(2,), kernel=2),
    "equilibrium": equilibrium(rate_cell(4, 5, 3), implicit(picard(), almeida_pineda(stop=TIGHT), TIGHT)),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def rows(b, active=(True, True, True)):
    x_key, w_key = jax.random.split(jax.random.key(3))
    batch = rows_of(2 * jax.random.normal(x_key, (b, 4)), jnp.arange(b, dtype=jnp.int32) % 3, 3, 1.0)
    weight = jax.random.uniform(w_key, (b,)).at[0].set(0)
    return batch._replace(weight=weight, active=jnp.tile(jnp.array(active), (b, 1)))


def scores(model, params, row):
    """(∂ log p_y/∂θ) for every active label y, and p_y, by `jax.grad` of a softmax over the active outputs alone."""
    alive = np.flatnonzero(np.asarray(row.active))
    log_p = jax.jit(lambda params: jax.nn.log_softmax(model.apply(params, row.x)[0][alive]))
    return alive, np.exp(log_p(params)), jax.jacrev(log_p)(params)


def by_loop(model, params, batch, kind):
    """Σ_r w_r Σ_y π_y (∂ log p_y/∂θ)²; π is p, or one for the row's own label."""
    total = jax.tree.map(np.zeros_like, params)
    for r in range(len(batch.x)):
        row = jax.tree.map(lambda leaf, r=r: leaf[r], batch)
        alive, p, gradients = scores(model, params, row)
        share = p if kind == "exact" else np.asarray(row.target)[alive]
        for n, pi in enumerate(share):
            total = jax.tree.map(
                lambda t, g, n=n, pi=pi, w=float(row.weight): t + w * pi * np.square(g[n]), total, gradients
            )
    return total


def fisher(model, params, batch, kind, seed=0):
    return jax.jit(cl.fisher, static_argnums=(0, 4))(model, params, batch, jax.random.key(seed), kind)


@every_model
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_it_is_the_mean_of_squared_per_example_gradients(model, kind):
    params, batch = model.init(jax.random.key(1)), rows(4)
    chex.assert_trees_all_close(fisher(model, params, batch, kind), by_loop(model, params, batch, kind), atol=1e-10)


@pytest.mark.parametrize("model", [DENSE, MODELS["no layers"]], ids=["products", "row by row"])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_outputs_that_are_not_active_do_not_exist(model, kind):
    """Label 2 switched off: rows that carry it have nothing empirical to tell, and its own weights are free."""
    params, batch = model.init(jax.random.key(1)), rows(4, active=(True, True, False))
    found = fisher(model, params, batch, kind)
    chex.assert_trees_all_close(found, by_loop(model, params, batch, kind), atol=1e-10)
    last = found[-1]["b"] if model is DENSE else found["b"]
    assert last[2] == 0
    assert (last[:2] > 0).all()


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
def test_products_and_rows_are_two_ways_to_one_number(kind):
    """The same net without its `layers` goes row by row, with the same keys for the labels."""
    params, batch = DENSE.init(jax.random.key(1)), rows(6)
    chex.assert_trees_all_close(
        fisher(DENSE, params, batch, kind), fisher(DENSE._replace(layers=None), params, batch, kind), atol=1e-12
    )


@pytest.mark.parametrize("active", [(True, True, True), (True, False, True)])
def test_a_sample_is_one_active_labels_square(active):
    """For one row the sampled Fisher is one of the active labels' squares, and over many keys all of them occur."""
    params, batch = DENSE.init(jax.random.key(1)), jax.tree.map(lambda leaf: leaf[1:2], rows(2, active))
    row = jax.tree.map(lambda leaf: leaf[0], batch)
    alive, _, gradients = scores(DENSE, params, row)
    squares = float(row.weight) * np.square(gradients[0]["w"])
    sampled = jax.jit(jax.vmap(lambda key: cl.fisher(DENSE, params, batch, key, "sampled")[0]["w"]))
    drawn = sampled(jax.random.split(jax.random.key(0), 60))
    nearest = np.array([[np.abs(one - square).max() for square in squares] for one in np.asarray(drawn)])
    assert nearest.min(1).max() < 1e-12
    assert set(nearest.argmin(1)) == set(range(len(alive)))


def test_samples_average_to_the_exact_one():
    """Over 4000 draws: within 5 standard errors, weight by weight."""
    params, batch = DENSE.init(jax.random.key(1)), rows(3)
    sampled = jax.jit(jax.vmap(lambda key: cl.fisher(DENSE, params, batch, key, "sampled")[1]["w"]))
    drawn = np.asarray(sampled(jax.random.split(jax.random.key(0), 4000)))
    exact = np.asarray(fisher(DENSE, params, batch, "exact")[1]["w"])
    error = drawn.std(0) / np.sqrt(4000)
    assert (np.abs(drawn.mean(0) - exact) <= 5 * error + 1e-12).all()


def test_the_squared_mean_gradient_is_something_else():
    """Labels drawn from the net itself: the mean of 128 independent scores is 128 times smaller when squared."""
    params = DENSE.init(jax.random.key(1))
    batch = rows(128)._replace(weight=jnp.full(128, 1 / 128))
    logits = jax.vmap(DENSE.apply, (None, 0))(params, batch.x)[0]

    def squared_mean(key):
        labels = jax.random.categorical(key, logits)
        loss = lambda p: -jnp.mean(jax.vmap(lambda x, y: jax.nn.log_softmax(DENSE.apply(p, x)[0])[y])(batch.x, labels))
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(params)))

    wrong = float(jnp.mean(jax.jit(jax.vmap(squared_mean))(jax.random.split(jax.random.key(0), 200))))
    exact = sum(float(jnp.sum(f)) for f in jax.tree.leaves(fisher(DENSE, params, batch, "exact")))
    assert 90 < exact / wrong < 180


def a_task(count, rows_max):
    """A task of `count` rows whose places beyond it repeat the last row."""
    batch = rows(count)._replace(weight=jnp.ones(count))
    return batch, Task(
        number=jnp.int32(0),
        count=jnp.int32(count),
        rows_max=rows_max,
        rows=lambda place: jax.tree.map(lambda leaf: leaf[jnp.minimum(place, count - 1)], batch),
        slot=lambda place: jnp.zeros_like(place),
    )


@pytest.mark.parametrize(("count", "rows_max"), [(5, 5), (5, 90), (CHUNK + 3, CHUNK + 3)])
def test_the_fisher_of_a_task_is_the_mean_over_all_its_rows(count, rows_max):
    """In one chunk or two, with spare places or none."""
    params = DENSE.init(jax.random.key(1))
    batch, task = a_task(count, rows_max)
    found = fisher_of_task(DENSE, params, task, jax.random.key(0), "exact", None)
    expected = jax.tree.map(lambda f: f / count, fisher(DENSE, params, batch, "exact"))
    chex.assert_trees_all_close(found, expected, atol=1e-12)


def test_samples_are_drawn_without_replacement_and_count_once():
    """2 samples of 3 rows: one of the three means of two rows; asking for more than there are takes all."""
    params = DENSE.init(jax.random.key(1))
    batch, task = a_task(3, 3)
    alone = [
        np.asarray(fisher(DENSE, params, jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], batch), "exact")[0]["w"])
        for r in range(3)
    ]
    pairs = [(alone[a] + alone[b]) / 2 for a, b in ((0, 1), (0, 2), (1, 2))]
    draw = jax.jit(lambda key: fisher_of_task(DENSE, params, task, key, "exact", 2)[0]["w"])
    found = [np.asarray(draw(jax.random.key(seed))) for seed in range(12)]
    which = [int(np.argmin([np.abs(one - pair).max() for pair in pairs])) for one in found]
    assert max(np.abs(one - pairs[w]).max() for one, w in zip(found, which, strict=True)) < 1e-12
    assert set(which) == {0, 1, 2}
    everything = fisher_of_task(DENSE, params, task, jax.random.key(0), "exact", 10)[0]["w"]
    np.testing.assert_allclose(everything, sum(alone) / 3, atol=1e-12)
