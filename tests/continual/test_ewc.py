"""EWC over three tasks against the sum of its penalties, one per task, each differentiated on its own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning, trees
from bptoolkit.continual.streams import gather, spec
from bptoolkit.learning.learner import Task
from bptoolkit.models import mlp

MODEL = mlp(4, 5, 6)
STRENGTH = 30.0


@pytest.fixture(scope="module")
def stream():
    return cl.split(data.gaussian_classes(jax.random.key(1), 6, 5, 4, test_rows=2), 2, "task")


def batch_of(stream, task):
    """All rows of a task: ten of them."""
    indices = jax.jit(stream.draw)(jax.random.key(0))
    row = indices.train.index[task]
    return gather(stream.data.train, 1.0, indices, jnp.full_like(row, task), row)


def ended(stream, task):
    batch = batch_of(stream, task)
    return Task(
        number=jnp.int32(task),
        count=jnp.int32(10),
        rows_max=10,
        rows=lambda place: jax.tree.map(lambda leaf: leaf[place], batch),
        slot=lambda place: jnp.zeros_like(place),
    )


def points():
    """Where three tasks ended, and where the net is now."""
    return [MODEL.init(jax.random.key(seed)) for seed in range(4)]


def consolidated(learner, stream, ends):
    memory = learner.init(ends[0], spec(stream), jax.random.key(0))
    for task, params in enumerate(ends):
        kept, memory = jax.jit(lambda m, p, task=task: learner.end_task(m, p, ended(stream, task), jax.random.key(3)))(
            memory, params
        )
        chex.assert_trees_all_equal(kept, params)  # EWC moves nothing when a task ends
    return memory


def pull(learner, memory, params, batch):
    """What EWC adds to the gradient of the batch."""
    with_penalty, _, _ = jax.jit(learner.gradient)(memory, params, batch, jax.random.key(0))
    plain, _, _ = jax.jit(learning.backprop(MODEL).gradient)((), params, batch, jax.random.key(0))
    return trees.subtract(with_penalty, plain)


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_one_quadratic_pulls_as_a_penalty_for_every_task_does(stream, kind):
    """∇ of Σ_t ½ λ Σ_i F_t,i (θ_i − θ_t,i)², F_t the mean over task t's rows, three tasks."""
    *ends, now = points()
    learner = cl.ewc(STRENGTH, fisher=kind)(learning.backprop(MODEL))
    fishers = []
    for task, params in enumerate(ends):
        batch = batch_of(stream, task)
        fishers.append(
            trees.scale(0.1, jax.jit(cl.fisher, static_argnums=(0, 4))(MODEL, params, batch, jax.random.key(0), kind))
        )

    def penalty(params):
        square = lambda f, p, a: 0.5 * STRENGTH * jnp.sum(f * (p - a) ** 2)
        each = [jax.tree.map(square, f, params, a) for f, a in zip(fishers, ends, strict=True)]
        return sum(jax.tree.leaves(each))

    found = pull(learner, consolidated(learner, stream, ends), now, batch_of(stream, 2))
    chex.assert_trees_all_close(found, jax.grad(penalty)(now), atol=1e-10)


def test_the_newest_anchor_for_all_would_pull_elsewhere(stream):
    """Negative control: the summed Fisher with the last anchor is online EWC, another method."""
    *ends, now = points()
    learner = cl.ewc(STRENGTH)(learning.backprop(MODEL))
    memory = consolidated(learner, stream, ends)
    right = pull(learner, memory, now, batch_of(stream, 2))
    online = pull(learner, memory._replace(anchor=ends[-1]), now, batch_of(stream, 2))
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (right, online)), strict=True)) > 0.01


def test_nothing_is_pulled_during_the_first_task(stream):
    learner = cl.ewc(STRENGTH)(learning.backprop(MODEL))
    start, other = points()[:2]
    memory = learner.init(start, spec(stream), jax.random.key(0))
    chex.assert_trees_all_equal(pull(learner, memory, other, batch_of(stream, 0)), trees.zeros_like(other))


def test_weights_without_information_are_free(stream):
    """Task 0 has two active outputs, so the last layer's weights to the four others have none."""
    ended_at, now = points()[:2]
    learner = cl.ewc(STRENGTH)(learning.backprop(MODEL))
    memory = consolidated(learner, stream, [ended_at])
    batch = batch_of(stream, 0)
    free = ~np.asarray(batch.active[0])
    found = pull(learner, memory, now, batch)[1]
    assert free.sum() == 4
    np.testing.assert_array_equal(np.asarray(found["w"])[:, free], 0)
    np.testing.assert_array_equal(np.asarray(found["b"])[free], 0)
    assert (np.abs(np.asarray(found["b"])[~free]) > 0).all()


def test_at_its_anchor_a_net_is_not_pulled(stream):
    """The same end twice: the anchor stays bit-identical, the pull exactly zero."""
    at = points()[0]
    learner = cl.ewc(STRENGTH)(learning.backprop(MODEL))
    memory = consolidated(learner, stream, [at, at])
    chex.assert_trees_all_equal(memory.anchor, at)
    chex.assert_trees_all_equal(pull(learner, memory, at, batch_of(stream, 1)), trees.zeros_like(at))


@pytest.fixture(scope="module")
def runs(stream):
    """Two seeds under naive, under strengths that are traced, and under one that is written in."""
    rule = learning.backprop(MODEL)
    traced = lambda hyper: cl.ewc(hyper["strength"])(rule)

    def run(learner, **hyper):
        experiment = cl.Experiment(stream, learner, optax.sgd(0.1), steps=6, batch=4, hyper=hyper)
        return cl.run(experiment, jax.random.key(0), seeds=2)

    return {
        "naive": run(rule),
        "nothing": run(traced, strength=0.0),
        "traced": run(traced, strength=STRENGTH),
        "written": run(cl.ewc(STRENGTH)(rule)),
    }


def test_strength_zero_is_naive_bit_for_bit(runs):
    chex.assert_trees_all_equal(runs["nothing"].params, runs["naive"].params)
    np.testing.assert_array_equal(runs["nothing"].accuracy, runs["naive"].accuracy)


def test_a_traced_strength_is_the_same_number(runs):
    """Through `hyper`, and written in: the same weights, and others than without."""
    chex.assert_trees_all_close(runs["traced"].params, runs["written"].params, atol=1e-12)
    assert np.abs(runs["traced"].params[0]["w"] - runs["nothing"].params[0]["w"]).max() > 1e-3


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.ewc(-1.0), r"strength must be at least 0, got -1.0"),
        (lambda: cl.ewc("big"), "strength must be a real number, got 'big'"),
        (lambda: cl.ewc(None), "strength must be a real number, got None"),
        (lambda: cl.ewc(np.ones(2)), r"strength must be one number, got an array of shape \(2,\)"),
        (lambda: cl.ewc(learning.backprop(mlp(4, 6))), r"strength must be a real number, got a learner. .*ewc\(10.0\)"),
        (lambda: cl.ewc(float("nan")), "strength must be at least 0, got nan"),
        (lambda: cl.ewc(np.float64(-2.0)), "strength must be at least 0"),
        (lambda: cl.ewc(1.0, samples=0), "samples must be at least 1, got 0"),
        (lambda: cl.ewc(1.0, fisher="diagonal"), "fisher must be .* got 'diagonal'"),
    ],
)
def test_what_cannot_be_a_penalty_is_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
