"""What every strategy owes, alone and composed, on a static and on a settling net, in the three scenarios."""

from functools import cache
from importlib import import_module
from itertools import pairwise
from pkgutil import iter_modules

import chex
import jax
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.fixed_point import almeida_pineda, implicit, picard
from bptoolkit.learning.warm import Starts
from bptoolkit.models import equilibrium, mlp, rate_cell

RELAX = implicit(picard(), almeida_pineda())  # compiles in half the time of the choice made by itself
NETS = {"static": lambda k: mlp(4, 5, k), "recurrent": lambda k: equilibrium(rate_cell(4, 5, k), RELAX)}
MODULES = [import_module(f"bptoolkit.continual.{found.name}") for found in iter_modules(cl.__path__)]
STRATEGIES = {name: strategy for module in MODULES for name, strategy in getattr(module, "EXAMPLES", {}).items()}
ALL = ("class", "domain", "task")
SOME = {name: where for module in MODULES for name, where in getattr(module, "SCENARIOS", {}).items()}
REFUSED = [(name, scenario) for name, where in SOME.items() for scenario in ALL if scenario not in where]
COMPOSED = {
    "ewc of replay": lambda learner: cl.ewc(10.0, fisher="sampled", samples=3)(cl.replay(2)(learner)),
    "replay of ewc": lambda learner: cl.replay(2)(cl.ewc(10.0)(learner)),
    "si of replay of xdg": lambda learner: cl.si(1.0)(cl.replay(2)(cl.xdg(0.5)(learner))),
}


def scenario_of(strategy, number):
    """The scenarios that it works in, in turn."""
    where = (SOME | {"si of replay of xdg": ("task",)}).get(strategy, ALL)
    return where[number % len(where)]


# Every strategy on every net, the scenarios in turn: each meets every net, and each strategy two of them.
CASES = [
    (strategy, net, scenario_of(strategy, i + j))
    for i, strategy in enumerate(STRATEGIES | COMPOSED)
    for j, net in enumerate(NETS)
]
OUTPUTS = {"class": 6, "domain": 2, "task": 6}
# The rule around a net that settles starts each row where it last ended: what it remembers must come through as well.
RULES = {"static": learning.backprop, "recurrent": lambda model: learning.warm_backprop(model, 24)}
STEPS = 4


def watched(learner):
    """The learner, and a list that grows whenever its gradient is traced."""
    traces = []

    def gradient(memory, params, batch, key):
        traces.append(batch.x.shape)
        return learner.gradient(memory, params, batch, key)

    return learner._replace(gradient=gradient), traces


@pytest.fixture(scope="module")
def course(clouds, drive):
    """The function (strategy, net, scenario) -> its stages, and how often its gradient had been traced after each."""

    @cache
    def go(strategy, net, scenario):
        stream = clouds(scenario)
        rule, traces = watched(RULES[net](NETS[net](stream.outputs)))
        driven = drive((STRATEGIES | COMPOSED)[strategy](rule), stream, steps=STEPS)
        progress, stages, seen = driven.begin(), [], []
        for task in range(stream.tasks):
            stages.append(driven.stage(progress, task))
            progress = stages[-1].progress
            seen.append(len(traces))
        return stages, seen

    return go


@pytest.mark.parametrize(("strategy", "net", "scenario"), CASES)
def test_a_strategy_learns_every_task_in_one_program(strategy, net, scenario, course):
    """Finite, of the right shapes, moved by every task, and nothing traced after the first task began."""
    stages, seen = course(strategy, net, scenario)
    ends = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(stage.progress.params)]) for stage in stages]
    assert all(np.isfinite(stage.loss).all() and np.isfinite(stage.logits).all() for stage in stages)
    assert all(np.isfinite(end).all() for end in ends)
    assert stages[-1].logits.shape == (3, 8, OUTPUTS[scenario])
    assert 0 < seen[0] == seen[1] == seen[2]
    assert all(np.abs(one - other).max() > 1e-6 for one, other in pairwise(ends))


# Other rules than `backprop` of a cross-entropy: for one strategy of every module, the last of its examples.
FAMILIES = [list(module.EXAMPLES)[-1] for module in MODULES if hasattr(module, "EXAMPLES")]
LOSSES = {  # by hand, of logits o and targets t
    learning.binary_cross_entropy: lambda o, t: np.logaddexp(0, np.where(t > 0, -o, o)),
    learning.squared_error: lambda o, t: (t - o) ** 2 / 2,
}
UNSERVED = {
    ("lwf with drawn heads", learning.binary_cross_entropy): "lwf needs a learner that follows a cross-entropy of soft",
    ("lwf with drawn heads", learning.squared_error): "lwf needs a learner that follows a cross-entropy of softmaxes",
    ("icarl", learning.squared_error): "icarl needs a cross-entropy",
}
SERVED = [(name, learning.binary_cross_entropy) for name in FAMILIES] + [
    (name, learning.squared_error) for name in ("reservoir_replay", "der_plus_plus", "mas")
]
named = lambda value: getattr(value, "__name__", None)


@pytest.fixture(scope="module")
def told(clouds, drive):
    """The function (strategy, rule) -> it, driven through three tasks of which it is told, and its stages."""

    def go(strategy, rule):
        driven = drive(strategy(rule), clouds("task"), steps=STEPS)
        return driven, driven.run()

    return go


@pytest.fixture(scope="module")
def naive_end(told):
    """The function of a loss -> where naive training by it ends."""
    return cache(lambda loss: told(cl.naive, learning.backprop(NETS["static"](6), loss))[1][-1].progress.params)


def gap(one, other):
    return max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@pytest.mark.parametrize(("strategy", "loss"), [case for case in SERVED if case not in UNSERVED], ids=named)
def test_a_strategy_goes_by_the_loss_that_its_rule_follows(strategy, loss, told, naive_end):
    """Its first loss is that of its first answers, by hand; it ends elsewhere than naive training by the same loss."""
    driven, stages = told(STRATEGIES[strategy], learning.backprop(NETS["static"](6), loss))
    if strategy != "hat":  # it learns with attention softer than it answers with
        start, rows = driven.begin(), driven.rows(0)
        answers, _ = driven.learner.predict(start.memory, start.params, rows)
        each = LOSSES[loss](np.asarray(answers), np.asarray(rows.target))
        np.testing.assert_allclose(stages[0].loss[0], np.sum(each, 1, where=rows.active).mean(), rtol=1e-9)
    assert all(np.isfinite(stage.loss).all() and np.isfinite(stage.logits).all() for stage in stages)
    assert gap(stages[-1].progress.params, naive_end(loss)) > 1e-6


@pytest.mark.parametrize(("strategy", "loss"), UNSERVED, ids=named)
def test_a_loss_that_cannot_serve_is_refused(strategy, loss):
    with pytest.raises(ValueError, match=UNSERVED[strategy, loss]):
        STRATEGIES[strategy](learning.backprop(NETS["static"](6), loss))


SETTLING = [(strategy, scenario) for strategy, net, scenario in CASES if net == "recurrent"]


@pytest.mark.parametrize(("strategy", "scenario"), SETTLING)
def test_what_a_rule_remembers_stays_with_it_inside_of_a_strategy(strategy, scenario, course):
    """Every row of the three tasks has its start of settling in the end, or what the strategy learns from has."""
    stages, _ = course(strategy, "recurrent", scenario)
    starts = lambda tree: isinstance(tree, Starts)
    found = [tree.z for tree in jax.tree.leaves(stages[-1].progress.memory, is_leaf=starts) if starts(tree)]
    known = max(np.any(np.asarray(z) != 0, axis=-1).sum() for z in found)
    assert 0 < known <= 12 if strategy == "gdumb" else known == 24  # it learns from two rows a class


AS_NAIVE = ("naive", "joint", "cumulative")  # the latter two differ by their curriculum, which is the runner's business


@pytest.mark.parametrize(("strategy", "scenario"), [case for case in SETTLING if case[0] not in AS_NAIVE])
def test_a_strategy_around_a_rule_that_remembers_ends_elsewhere_than_the_rule_alone(strategy, scenario, course):
    end, alone = (course(name, "recurrent", scenario)[0][-1] for name in (strategy, "naive"))
    assert gap(end.progress.params, alone.progress.params) > 1e-6


@pytest.mark.parametrize("strategy", ["generative_replay", "der_plus_plus"])
def test_warm_starts_change_no_way_of_learning(strategy, course, clouds, drive):
    """Also where rows are of no data, or one row is there with two losses: to the tolerance as from cold starts."""
    scenario = dict(SETTLING)[strategy]
    stream = clouds(scenario)
    cold = drive(STRATEGIES[strategy](learning.backprop(NETS["recurrent"](stream.outputs))), stream, steps=STEPS)
    warm, _ = course(strategy, "recurrent", scenario)
    assert gap(warm[-1].progress.params, cold.run()[-1].progress.params) < 1e-7


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_the_runner_does_the_same(scenario, clouds):
    """Through `run`: shapes, and nothing traced after the first task began."""
    stream = clouds(scenario)
    rule, traces = watched(learning.backprop(NETS["static"](stream.outputs)))
    seen = []
    experiment = cl.Experiment(stream, cl.ewc(1.0)(cl.replay(2)(rule)), optax.sgd(0.05), steps=STEPS, batch=4)
    hook = lambda moment, state: seen.append(len(traces))
    result = cl.run(experiment, jax.random.key(0), seeds=2, on_task=hook)
    assert result.finite.all()
    assert result.accuracy.shape == (2, 3, 3)
    assert ((result.accuracy >= 0) & (result.accuracy <= 1)).all()
    assert np.isfinite(result.curves.loss).all()
    assert seen == [len(traces)] * 3


@pytest.mark.parametrize(("strategy", "scenario"), REFUSED)
def test_a_scenario_that_cannot_be_served_is_refused_before_anything_is_compiled(strategy, scenario, clouds):
    stream = clouds(scenario)
    learner = STRATEGIES[strategy](learning.backprop(mlp(4, 5, stream.outputs)))
    with pytest.raises(ValueError, match=f'got.*"{scenario}"(.|\n)*Make the stream with scenario='):
        cl.Experiment(stream, learner, optax.sgd(0.05), steps=STEPS).check()


@pytest.mark.parametrize("net", ["static", pytest.param("recurrent", marks=pytest.mark.slow)])
def test_ewc_and_replay_are_the_same_in_either_order(net, clouds, drive):
    """One row a class, so that what replay keeps is no matter of luck, and exact Fishers need none: equal nets.

    Negative control on the static net: neither of the two is the whole.
    """
    stream = clouds(rows=1)
    rule = learning.backprop(NETS[net](6))
    ewc, replay = cl.ewc(10.0), cl.replay(1)
    end = lambda learner: drive(learner, stream, steps=STEPS).run()[-1].progress.params

    both = end(ewc(replay(rule)))
    chex.assert_trees_all_close(both, end(replay(ewc(rule))), atol=1e-9)
    if net == "static":
        for alone in map(end, (ewc(rule), replay(rule))):
            gaps = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (both, alone)), strict=True)]
            assert max(gaps) > 1e-4


def test_naive_is_the_learner_itself():
    learner = learning.backprop(mlp(4, 2))
    assert cl.naive(learner) is learner


def test_replay_keeps_what_naive_training_loses(clouds, drive):
    """The point of it all, on easy clouds: replay ends above naive by far."""
    rule = learning.backprop(mlp(4, 16, 6))
    ends = {}
    for name, strategy in {"naive": cl.naive, "replay": cl.replay(4)}.items():
        driven = drive(strategy(rule), clouds(), optax.sgd(0.3), steps=60)
        stages = driven.run()
        ends[name] = driven.accuracy(stages[-1])
        assert np.mean([driven.accuracy(stage)[task] for task, stage in enumerate(stages)]) > 0.9
    assert ends["naive"][:2].mean() < 0.3
    assert ends["replay"].mean() > ends["naive"].mean() + 0.4
