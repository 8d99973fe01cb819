"""Learning without forgetting against its loss written out: slices of logits, log-softmax, no rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.learning import binary_cross_entropy, squared_error
from bptoolkit.models import mlp

STRENGTH, T = 0.8, 2.0
OUTPUTS = {"class": 6, "domain": 2, "task": 6}


def taught(drive, clouds, scenario, strategy, behind=2):
    """A learner after so many tasks that ended at random weights, the net that it had then, and another."""
    model = mlp(4, 5, OUTPUTS[scenario])
    driven = drive(strategy(learning.backprop(model)), clouds(scenario))
    memory, ends = driven.begin().memory, [model.init(jax.random.key(seed)) for seed in (5, 6, 7)]
    for number in range(behind):
        memory = driven.learner.end_task(memory, ends[number], driven.task(number), jax.random.key(3))[1]
    return driven, model, memory, ends[behind - 1], ends[2]


def written_out(model, teacher, driven, scenario, weight, heads):
    """CE over the active outputs + weight · mean over heads of the cross-entropy between softmaxes at temperature T."""
    batch = driven.rows(2)
    alive = np.flatnonzero(np.asarray(batch.active[0]))

    def loss(params):
        logits = jax.vmap(model.apply, (None, 0))(params, batch.x)[0]
        old = jax.vmap(model.apply, (None, 0))(teacher, batch.x)[0]
        now = -jnp.mean(jnp.sum(batch.target[:, alive] * jax.nn.log_softmax(logits[:, alive]), 1))
        soft = lambda head: jax.nn.softmax(old[:, head] / T)
        kept = [-jnp.mean(jnp.sum(soft(h) * jax.nn.log_softmax(logits[:, h] / T), 1)) for h in heads]
        return now + weight * sum(kept) / len(kept)

    return jax.jit(jax.value_and_grad(loss))


def heads_of(driven, scenario, behind):
    everything = np.arange(OUTPUTS[scenario])
    if scenario != "task":
        return [everything]
    return [np.flatnonzero(np.asarray(driven.rows(task).active[0])) for task in range(behind)]


@pytest.mark.parametrize(
    ("scenario", "behind", "weight"), [("class", 2, 1), ("domain", 2, 2), ("task", 2, 2), ("task", 1, 1)]
)
def test_rows_add_the_loss_as_it_is_written(scenario, behind, weight, clouds, drive):
    """With k − 1 tasks behind: w = strength in scenario class, (k − 1) strength in the others; value and gradient.

    Negative control: another weight gives another gradient.
    """
    driven, model, memory, teacher, now = taught(drive, clouds, scenario, cl.lwf(STRENGTH, temperature=T), behind)
    found, info, _ = jax.jit(driven.learner.gradient)(memory, now, driven.rows(2), jax.random.key(0))
    heads = heads_of(driven, scenario, behind)
    value, expected = written_out(model, teacher, driven, scenario, weight * STRENGTH, heads)(now)
    np.testing.assert_allclose(info.loss, value, atol=1e-12)
    chex.assert_trees_all_close(found, expected, atol=1e-12)
    _, wrong = written_out(model, teacher, driven, scenario, 3 * STRENGTH, heads)(now)
    assert np.abs(wrong[1]["w"] - found[1]["w"]).max() > 1e-3


def test_a_drawn_head_is_right_on_average(clouds, drive):
    """400 draws of one head a row: within five standard errors of all heads."""
    driven, _, memory, _, now = taught(drive, clouds, "task", cl.lwf(STRENGTH, heads="drawn"))
    every = cl.lwf(STRENGTH)(learning.backprop(mlp(4, 5, 6)))
    draw = lambda key: driven.learner.gradient(memory, now, driven.rows(2), key)[0][1]["w"]
    drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 400)))
    exact = jax.jit(every.gradient)(memory, now, driven.rows(2), jax.random.key(0))[0][1]["w"]
    error = drawn.std(0) / np.sqrt(400)
    assert (np.abs(drawn.mean(0) - exact) <= 5 * error + 1e-12).all()
    assert error.max() > 1e-6


def test_nothing_is_distilled_in_the_first_task_and_at_strength_zero(clouds, drive):
    """Both are the learner inside, to rounding."""
    driven, model, memory, _, now = taught(drive, clouds, "task", cl.lwf(0.0))
    plain = jax.jit(learning.backprop(model).gradient)((), now, driven.rows(2), jax.random.key(0))[0]
    gradient = jax.jit(driven.learner.gradient)
    first = driven.begin().memory._replace(strength=jnp.ones(()))
    for state in (memory, first):
        chex.assert_trees_all_close(gradient(state, now, driven.rows(2), jax.random.key(0))[0], plain, atol=1e-12)


def test_where_the_teacher_is_the_net_itself_distillation_has_no_gradient(clouds, drive):
    """Law: cross-entropy of a distribution with itself is at its minimum."""
    driven, model, memory, teacher, _ = taught(drive, clouds, "class", cl.lwf(5.0))
    found = jax.jit(driven.learner.gradient)(memory, teacher, driven.rows(2), jax.random.key(0))[0]
    plain = jax.jit(learning.backprop(model).gradient)((), teacher, driven.rows(2), jax.random.key(0))[0]
    chex.assert_trees_all_close(found, plain, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.lwf(-1.0), "strength must be at least 0, got -1.0"),
        (lambda: cl.lwf(temperature=0.0), "temperature must be positive, got 0.0"),
        (lambda: cl.lwf(heads="none"), "heads must be one of .* got 'none'"),
        (lambda: cl.lwf()(learning.backprop(mlp(4, 2), squared_error)), "cross-entropy.* follows squared_error"),
        (lambda: cl.lwf()(learning.backprop(mlp(4, 2), binary_cross_entropy)), "softmaxes.* binary_cross_entropy"),
        (lambda: cl.lwf()(learning.backprop(mlp(4, 2))._replace(loss=None)), "cross-entropy.* follows none"),
    ],
)
def test_what_cannot_distil_is_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
