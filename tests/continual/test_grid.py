"""A grid of numbers is one run: each of its cells is the run alone, and all are compiled once."""

from dataclasses import replace

import chex
import jax
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.continual.cost import flops_of_prediction
from bptoolkit.continual.experiment import Cost
from bptoolkit.continual.lanes import make_lanes
from bptoolkit.continual.layout import Layout
from bptoolkit.continual.run import _priced
from bptoolkit.learning.fit import Curves
from bptoolkit.models import equilibrium, mlp, rate_cell

MODEL = mlp(4, 5, 4)
GRID = {"rate": [0.1, 0.4], "decay": [0.0, 0.3]}
KEY, SEEDS = jax.random.key(0), [0, 3]


def decaying(hyper):
    """½ decay ‖θ‖² is added to the loss."""
    if isinstance(hyper["decay"], float) and hyper["decay"] < 0:
        raise ValueError("decay must be at least 0")
    bare = learning.backprop(MODEL)

    def gradient(memory, params, batch, key):
        grads, info, memory = bare.gradient(memory, params, batch, key)
        return jax.tree.map(lambda g, p: g + hyper["decay"] * p, grads, params), info, memory

    return bare._replace(gradient=gradient)


@pytest.fixture(scope="module")
def experiment():
    """Two tasks of two classes; learner and optimiser are made from traced numbers."""
    clouds = data.gaussian_classes(jax.random.key(1), 4, (5, 7, 2, 6), 4, spread=0.7, test_rows=8)

    def define(rate: float, decay: float, built: list | None = None) -> cl.Experiment:
        def optimizer(hyper):
            if built is not None and isinstance(hyper["rate"], jax.core.Tracer):
                built.append("traced")
            return optax.sgd(hyper["rate"])

        hyper = {"rate": rate, "decay": decay}
        return cl.Experiment(cl.split(clouds, 2), decaying, optimizer, steps=4, batch=4, hyper=hyper)

    return define


@pytest.fixture(scope="module", params=[True, False], ids=["stacked", "in turn"])
def whole(request, experiment):
    """The grid, its layout, and the states after each task."""
    layout, states = Layout(1, request.param), []
    keep = lambda moment, state: states.append(state)
    return cl.run_grid(experiment(9.0, 9.0), GRID, KEY, SEEDS, on_task=keep, layout=layout), layout, states


def same(one, other, atol):
    for name in ("accuracy", "train_accuracy", "untrained", "untrained_train", "finite", "seeds"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    chex.assert_trees_all_close((one.params, one.curves), (other.params, other.curves), atol=atol, rtol=0)


@pytest.mark.parametrize("point", [(0.1, 0.0), (0.4, 0.3)])
def test_a_cell_is_the_run_alone_with_its_values(experiment, whole, point):
    """In turn, the same operations on the same shapes: bit for bit.  Stacked with more nets: to rounding."""
    results, layout, _ = whole
    alone = cl.run(experiment(*point), KEY, SEEDS, layout=layout)
    same(alone, results[point], atol=1e-12 if layout.stacked else 0.0)


def test_every_combination_is_a_cell_and_no_two_are_alike(whole):
    """Negative control of the law above: another value is seen."""
    results = whole[0]
    assert list(results) == [(0.1, 0.0), (0.1, 0.3), (0.4, 0.0), (0.4, 0.3)]
    weights = [np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(r.params)]) for r in results.values()]
    assert all(np.abs(weights[a] - weights[b]).max() > 1e-3 for a in range(4) for b in range(a))


def test_each_cell_is_told_its_share_of_the_seconds(whole):
    results, _, states = whole
    assert [result.cost.seconds for result in results.values()] == [states[-1].seconds / 4] * 4


def test_each_cell_is_told_the_flops_of_its_own_settling(experiment):
    """Nets that took 3 steps in the first half of training and 5 in the second, and nets that took 8 and 12."""
    model = equilibrium(rate_cell(4, 5, 4))
    settles = replace(experiment(0.1, 0.0), learner=learning.backprop(model))
    lanes = make_lanes(settles, {"rate": [0.1, 0.4]}, KEY, SEEDS)
    steps = [np.array([[3.0]] * 2 + [[8.0]] * 2), np.array([[5.0]] * 2 + [[12.0]] * 2)]
    curves = [Curves(*[settling] * 5) for settling in steps]
    params = jax.vmap(model.init)(lanes.keys)
    unpriced = Cost(0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, "")
    told = [cost.flops for cost in _priced(unpriced, settles, lanes, params, curves)]
    alone = jax.tree.map(lambda leaf: leaf[0], params)
    assert told == flops_of_prediction(model, alone, np.zeros(4), np.array([4.0, 10.0])).tolist()


@pytest.mark.parametrize("written_in", [False, True], ids=["traced", "written in"])
def test_a_grid_is_traced_as_often_as_one_run(experiment, written_in):
    """Once for each program.  Negative control: rates that are run one after the other are traced anew."""
    one, many = [], []
    cl.run(experiment(0.1, 1.0, one), KEY, SEEDS)
    if written_in:
        for rate in GRID["rate"]:
            cl.run(experiment(rate, 1.0, many), KEY, SEEDS)
    else:
        cl.run_grid(experiment(0.1, 1.0, many), GRID, KEY, SEEDS)
    assert len(one) > 0
    assert len(many) == len(one) * (2 if written_in else 1)


def test_a_grid_taken_up_again_ends_the_same(experiment, whole):
    results, layout, states = whole
    resumed = cl.run_grid(experiment(9.0, 9.0), GRID, KEY, SEEDS, state=states[0], layout=layout)
    for point, result in results.items():
        same(resumed[point], result, atol=0.0)


def test_a_grid_over_nothing_is_the_run(experiment):
    (point,) = cl.run_grid(experiment(0.1, 1.0), {}, KEY, SEEDS)
    assert point == ()


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"units": [20]}, r"numbers in the experiment's hyper \(rate, decay\), got 'units'"),
        ({"rate": []}, "at least one value of rate, got none"),
        ({"decay": [1.0, -1.0]}, "decay must be at least 0"),
        ({"rate": [0.1, "fast"]}, "hyper holds numbers, got 'fast' for 'rate'"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(experiment, grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        cl.run_grid(experiment(0.1, 1.0), grid, KEY, SEEDS)


@pytest.mark.parametrize(
    ("hyper", "sentence"),
    [
        ({"rule": "sgd"}, "hyper holds numbers, got 'sgd' for 'rule'"),
        ({1: 0.1}, "Names in hyper must be strings, got 1"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_a_sentence(experiment, hyper, sentence):
    plain = experiment(0.1, 1.0)
    with pytest.raises(ValueError, match=sentence):
        cl.run(replace(plain, hyper={**plain.hyper, **hyper}), KEY, SEEDS)
