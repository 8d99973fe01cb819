"""What goes around what: what would do nothing there, or something else than it says, is refused in a sentence."""

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
