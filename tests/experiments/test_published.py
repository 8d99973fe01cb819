"""The protocols of published tables: their own strategies against the formulas, and every cell can be run."""

import importlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.models import mlp
from experiments.published import gem

NET = mlp(4, 3, 3, 2)
KEY = jax.random.key(0)
PROTOCOLS = Path(gem.__file__).parent


@pytest.fixture(scope="module")
def stream():
    clouds = data.gaussian_classes(jax.random.key(1), 2, 6, 4, spread=0.7, test_rows=4)
    return cl.permuted(clouds, gem.TASKS)


def trained(stream, strategy, **options):
    states = []
    learner = strategy(learning.backprop(NET))
    experiment = cl.Experiment(stream, learner, optax.sgd(0.1), steps=3, batch=4, **options)
    result = cl.run(experiment, KEY, seeds=1, on_task=lambda moment, state: states.append(state))
    return result, states


def test_every_task_has_its_own_input_layer_and_shares_the_rest(stream):
    """What a task trained stays as it was while others train; the shared layers do not.  Answers to a task at the end
    are those of the net with its input layer."""
    result, states = trained(stream, gem.own_inputs)
    own = lambda state, task: jax.tree.map(lambda leaf: leaf[0, task], state.progress.params[0])
    chex.assert_trees_all_equal(own(states[0], 0), own(states[-1], 0))
    assert not np.array_equal(own(states[0], 1)["w"], own(states[1], 1)["w"])
    assert not np.array_equal(states[0].progress.params[1]["w"], states[1].progress.params[1]["w"])
    params = jax.tree.map(lambda leaf: leaf[0], result.params)
    lane = stream.draw(jax.random.split(jax.random.fold_in(KEY, 0), 4)[0])
    for task in (0, 7):
        net = (jax.tree.map(lambda leaf, task=task: leaf[task], params[0]), *params[1:])
        x = stream.data.test.x[:, lane.order[task]]
        answers = jnp.argmax(jax.vmap(lambda x, net=net: NET.apply(net, x)[0])(x), 1)
        np.testing.assert_allclose(
            result.accuracy[0, -1, task], np.mean(np.asarray(answers) == np.asarray(stream.data.test.y))
        )


def test_importances_are_the_square_of_the_mean_gradient(stream):
    """Of all rows of a task; added up over tasks.  Negative control: the mean of squares is another number."""
    _, states = trained(stream, gem.squared_mean_ewc(3.0, 12))
    params, memory = jax.tree.map(lambda leaf: leaf[0], (states[0].progress.params, states[0].progress.memory))
    lane = stream.draw(jax.random.split(jax.random.fold_in(KEY, 0), 4)[0])
    x, y = stream.data.train.x[:, lane.order[0]], stream.data.train.y
    loss = lambda params, x, y: optax.softmax_cross_entropy_with_integer_labels(NET.apply(params, x)[0], y)
    slopes = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, y)
    expected = jax.tree.map(lambda g: jnp.square(jnp.mean(g, 0)), slopes)
    chex.assert_trees_all_close(memory.importance, expected, rtol=1e-6)
    assert not np.allclose(memory.importance[0]["w"], jnp.mean(jnp.square(slopes[0]["w"]), 0))
    assert memory.strength == 6.0  # no ½ in the penalty, so twice that in its gradient
    later = states[1].progress.memory.importance
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(b[0] >= a)), memory.importance, later)))


@pytest.mark.mnist
@pytest.mark.parametrize("name", sorted(f"{path.parent.name}.{path.stem}" for path in PROTOCOLS.glob("*/*.py")))
def test_every_cell_of_a_table_is_an_experiment_or_said_to_be_missing(name):
    """Checked before anything is compiled: shapes, numbers, scenarios."""
    table = importlib.import_module(f"experiments.published.{name}").TABLE
    for method, row in table.published.items():
        for column in row:
            made = table.define(method, table.columns[column].scenario)
            if made is None:
                assert "not run: " in " ".join(table.deviations(method, table.columns[column].scenario))
            else:
                made.check()
