"""What goes around what: what would do nothing there, or something else than it says, is refused in a sentence."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.models import mlp

RULE = learning.backprop(mlp(4, 5, 6))
BINARY = learning.backprop(mlp(4, 5, 6), learning.binary_cross_entropy)

# What goes by what tasks left when they ended, one of each kind.
ENDS = {
    "a penalty": cl.ewc(10.0),
    "a path integral": cl.si(1.0),
    "rehearsal": cl.replay(2),
    "projection": cl.ogd(2),
    "a constraint": cl.gem(2),
    "distillation": cl.lwf(),
    "functions": cl.fromp(1.0, 2),
    "generation": cl.generative_replay(hidden=(3,), latent=2, optimizer=optax.sgd(0.1)),
    "a sample": cl.gdumb(2, steps=2),
    "exemplars": cl.icarl(2),
    "a penalty inside of what renews": lambda rule: cl.redo()(cl.ewc(10.0)(rule)),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_goes_by_earlier_tasks_is_refused_where_every_stage_starts_anew(kind):
    """Inside of joint and around it: its memory begins again with the net."""
    for learner in (lambda: cl.joint(ENDS[kind](RULE)), lambda: ENDS[kind](cl.joint(RULE))):
        with pytest.raises(ValueError, match="starts anew with every stage, so a strategy that goes by what earlier"):
            learner()
    if kind != "a sample":  # trains a net of its own, whatever goes on around
        cl.cumulative(ENDS[kind](RULE))  # goes on, so there it has something to go by


@pytest.mark.parametrize("active", [cl.l2_init(1.0), cl.redo(0.5, every=2), cl.xdg(0.5)], ids=["pull", "redo", "xdg"])
def test_what_needs_no_earlier_task_changes_joint_training(active, clouds, drive):
    """The negative control of the refusal: these do something from the first step on."""
    stream = clouds("task")
    first = lambda learner: drive(learner, stream).stage(drive(learner, stream).begin(), 0).progress.params
    plain, changed = first(cl.joint(RULE)), first(cl.joint(active(RULE)))
    gaps = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), plain, changed)
    assert max(jax.tree.leaves(gaps)) > 1e-6


@pytest.mark.parametrize("isolating", [cl.packnet(), cl.hat(), cl.separate], ids=["packnet", "hat", "separate"])
@pytest.mark.parametrize("mixing", [cl.joint, cl.cumulative], ids=["joint", "cumulative"])
def test_what_gives_each_task_a_part_is_not_put_around_what_mixes_them(isolating, mixing):
    with pytest.raises(ValueError, match="trains on one task at a time, got joint, cumulative or separate inside"):
        isolating(mixing(RULE))


@pytest.mark.parametrize("matching", [cl.lwf(), cl.der(6, 1.0), cl.der_plus_plus(6, 1.0, 1.0)])
@pytest.mark.parametrize("other", [cl.icarl(2), cl.separate, lambda rule: cl.replay(2)(cl.icarl(2)(rule))])
def test_answers_that_are_not_one_nets_outputs_are_not_matched(matching, other):
    with pytest.raises(ValueError, match="lets one net's outputs match its earlier answers"):
        matching(other(RULE))


def test_a_generative_classifier_has_no_outputs_to_match():
    with pytest.raises(ValueError, match="lets one net's outputs match its earlier answers"):
        cl.der(6, 1.0)(cl.generative_classifier(4, 6, hidden=(3,), latent=2))


def test_the_other_way_round_they_are_matched(clouds):
    """The negative control: inside of icarl there are outputs to match."""
    cl.Experiment(clouds(), cl.icarl(2)(cl.der(6, 1.0)(BINARY)), optax.sgd(0.1), steps=2).check()


def test_icarl_reads_the_features_of_one_net():
    with pytest.raises(ValueError, match="icarl reads the features of one net"):
        cl.icarl(2)(cl.separate(BINARY))


@pytest.mark.parametrize("inner", [cl.l2_init(1.0), cl.ewc(1.0), cl.reservoir_replay(6)])
def test_a_net_that_is_drawn_anew_has_no_past_to_look_at(inner):
    with pytest.raises(ValueError, match="gdumb trains a new net each time, which has no past"):
        cl.gdumb(2, steps=2)(inner(RULE))


@pytest.mark.parametrize(
    "outer",
    [cl.ewc(1.0), cl.l2_init(1.0), cl.replay(2), cl.shrink_and_perturb(), cl.random_features, cl.cumulative],
)
def test_nothing_has_a_say_around_a_net_that_is_drawn_anew(outer):
    with pytest.raises(ValueError, match="gdumb trains a new net at the end of each task, in which a strategy around"):
        outer(cl.gdumb(2, steps=2)(RULE))


def test_what_goes_by_the_gradient_alone_has_a_say_inside(clouds, drive):
    """The negative control: the readout alone is trained, of the new net."""
    end = lambda rule: drive(cl.gdumb(2, steps=3, optimizer=optax.sgd(0.1))(rule), clouds()).run()[-1].progress.params
    frozen, free = end(cl.random_features(RULE)), end(RULE)
    assert np.abs(frozen[0]["w"] - free[0]["w"]).max() > 1e-6


@pytest.mark.parametrize("inner", [cl.ewc(1.0), cl.si(1.0), cl.replay(2), cl.agem(2), cl.lwf()])
def test_a_net_of_its_own_has_no_earlier_task_to_go_by(inner):
    with pytest.raises(ValueError, match="separate gives every task a net of its own, so a strategy inside"):
        cl.separate(inner(RULE))


@pytest.mark.parametrize("control", [cl.joint, cl.separate])
def test_a_new_net_is_not_shaken_before_its_first_task(control, clouds):
    """Shaken to nothing, the net of the last stage would end elsewhere; the negative control is a net that goes on."""

    def end(learner):
        experiment = cl.Experiment(clouds("task"), learner, optax.sgd(0.1), steps=3, batch=4)
        return cl.run(experiment, jax.random.key(0), seeds=1).params

    shaken = cl.shrink_and_perturb(0.0, 0.0)(RULE)
    chex.assert_trees_all_close(end(control(shaken)), end(control(RULE)), atol=1e-12)
    gone = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), end(shaken), end(RULE))
    assert max(jax.tree.leaves(gone)) > 1e-3


def test_each_of_separate_nets_is_pulled_to_its_own_first_weights(clouds, drive):
    """Strongly: it stays there, and the nets stay apart."""
    stages = drive(cl.separate(cl.l2_init(20.0)(RULE)), clouds("task"), optax.sgd(0.02), steps=40).run()
    nets, memories = stages[-1].progress.memory.nets
    end, first = (np.asarray(tree[0]["w"]) for tree in (nets, memories.anchor))
    own = np.abs(end - first).max(axis=(1, 2))
    apart = [np.abs(end[i] - end[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert own.max() < 0.1 * min(apart)


@pytest.mark.parametrize(
    "strategy", [cl.naive, cl.xdg(), cl.hat(), cl.packnet(), cl.lwf(), cl.icarl(2), cl.separate, cl.der(6, 1.0)]
)
def test_a_model_or_a_strategy_in_place_of_a_learner_is_refused(strategy):
    with pytest.raises(ValueError, match=r"A strategy goes around a learner, got Model. Make one .* backprop\(model\)"):
        strategy(RULE.model)
    with pytest.raises(ValueError, match="A strategy goes around a learner, got function"):
        strategy(cl.ewc(1.0))
