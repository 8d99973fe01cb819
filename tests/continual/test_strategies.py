"""What every strategy owes, alone and composed, on a static and on a settling net, in the three scenarios."""

from itertools import pairwise

import chex
import jax
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.fixed_point import almeida_pineda, implicit, picard
from bptoolkit.models import equilibrium, mlp, rate_cell

RELAX = implicit(picard(), almeida_pineda())  # compiles in half the time of the choice made by itself
NETS = {"static": lambda k: mlp(4, 5, k), "recurrent": lambda k: equilibrium(rate_cell(4, 5, k), RELAX)}
STRATEGIES = {
    "naive": cl.naive,
    "joint": cl.joint,
    "ewc": cl.ewc(10.0),
    "replay": cl.replay(2),
    "ewc of replay": lambda learner: cl.ewc(10.0, fisher="sampled", samples=3)(cl.replay(2)(learner)),
    "replay of ewc": lambda learner: cl.replay(2)(cl.ewc(10.0)(learner)),
}
SCENARIOS = ("class", "domain", "task")
# Every strategy on every net, the scenarios in turn: each meets every net, and each strategy two of them.
CASES = [(strategy, net, SCENARIOS[(i + j) % 3]) for i, strategy in enumerate(STRATEGIES) for j, net in enumerate(NETS)]
STEPS = 4


def watched(learner):
    """The learner, and a list that grows whenever its gradient is traced."""
    traces = []

    def gradient(memory, params, batch, key):
        traces.append(batch.x.shape)
        return learner.gradient(memory, params, batch, key)

    return learner._replace(gradient=gradient), traces


@pytest.mark.parametrize(("strategy", "net", "scenario"), CASES)
def test_a_strategy_runs_and_is_compiled_once(strategy, net, scenario):
    """Finite, of the right shapes, moved by every task, and nothing traced after the first task began."""
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 6, 4, 4), 2, scenario)
    rule, traces = watched(learning.backprop(NETS[net](stream.outputs)))
    seen, ends = [], []

    def on_task(moment, state):
        seen.append(len(traces))
        ends.append(np.asarray(jax.tree.leaves(state.progress.params)[-1]))

    experiment = cl.Experiment(stream, STRATEGIES[strategy](rule), optax.sgd(0.05), steps=STEPS, batch=4)
    result = cl.run(experiment, jax.random.key(0), seeds=2, on_task=on_task)

    assert result.finite.all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    assert result.accuracy.shape == (2, 3, 3)
    assert ((result.accuracy >= 0) & (result.accuracy <= 1)).all()
    assert np.isfinite(result.curves.loss).all()
    assert np.isfinite(result.unconverged).all() == (net == "recurrent")
    assert len(traces) > 0
    assert seen == [len(traces)] * 3
    assert all(np.abs(one - other).max() > 1e-6 for one, other in pairwise(ends))


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_ewc_and_replay_are_the_same_in_either_order(net):
    """One row a class, so that what replay keeps is no matter of luck, and exact Fishers need none: equal nets.

    Negative control on the static net: neither of the two is the whole.
    """
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 6, 1, 4), 2)
    rule = learning.backprop(NETS[net](6))
    ewc, replay = cl.ewc(10.0), cl.replay(1)

    def end(learner):
        experiment = cl.Experiment(stream, learner, optax.sgd(0.1), steps=STEPS, batch=2)
        return cl.run(experiment, jax.random.key(0), seeds=1).params

    both = end(ewc(replay(rule)))
    chex.assert_trees_all_close(both, end(replay(ewc(rule))), atol=1e-9)
    if net == "static":
        for alone in map(end, (ewc(rule), replay(rule))):
            gaps = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (both, alone)), strict=True)]
            assert max(gaps) > 1e-4


def test_naive_is_the_learner_itself():
    learner = learning.backprop(mlp(4, 2))
    assert cl.naive(learner) is learner


def test_replay_keeps_what_naive_training_loses():
    """The point of it all, on easy clouds: replay ends above naive by far."""
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 6, 10, 4, spread=0.3), 2)
    rule = learning.backprop(mlp(4, 16, 6))
    run = lambda strategy: cl.run(
        cl.Experiment(stream, strategy(rule), optax.sgd(0.3), steps=60, batch=10), jax.random.key(0), seeds=4
    )
    naive, replayed = run(cl.naive), run(cl.replay(5))
    assert cl.learning_accuracy(naive).mean() > 0.9
    assert cl.forgetting(naive).mean() > 0.5
    assert cl.forgetting(replayed).mean() < cl.forgetting(naive).mean() - 0.3
    assert cl.average_accuracy(replayed).mean() > cl.average_accuracy(naive).mean() + 0.2
