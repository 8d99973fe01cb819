"""Penalties against second computations: a NumPy loop for SI, autodiff row by row for MAS, sums for online EWC."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import learning, trees
from bptoolkit.continual.fisher import mean_of_task
from bptoolkit.continual.penalty import Anchored
from bptoolkit.continual.regularise import output_sensitivity
from bptoolkit.models import mlp

MODEL = mlp(4, 5, 6)
RATE, STRENGTH, DAMPING = 0.5, 0.7, 0.1


def numbers(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def si_run(clouds, drive):
    driven = drive(cl.si(STRENGTH, damping=DAMPING)(learning.backprop(MODEL)), clouds("task"), optax.sgd(RATE), steps=5)
    return driven, driven.run()


def test_si_is_the_path_integral_of_the_total_loss(si_run):
    """Two tasks of plain gradient descent in NumPy, the penalty written out in the loss that is differentiated."""
    driven, stages = si_run
    progress = driven.begin()
    theta = start = anchor = numbers(progress.params)
    unravel = jax.flatten_util.ravel_pytree(progress.params)[1]
    importance = np.zeros_like(theta)

    @jax.jit
    def slope(theta, anchor, importance, batch):
        def total(theta):
            logits = jax.vmap(MODEL.apply, (None, 0))(unravel(theta), batch.x)[0]
            log_p = jax.nn.log_softmax(jnp.where(batch.active, logits, -1e30))
            loss = -jnp.mean(jnp.sum(batch.target * log_p, 1))
            return loss + STRENGTH * jnp.sum(importance * (theta - anchor) ** 2)

        return jax.grad(total)(theta)

    for task in range(2):
        path, start = np.zeros_like(theta), theta
        for _ in range(5):
            g = np.asarray(slope(theta, anchor, importance, driven.rows(task)))
            moved = theta - RATE * g
            path += -g * (moved - theta)
            theta = moved
        importance = importance + path / ((theta - start) ** 2 + DAMPING)
        anchor = theta
        memory = stages[task].progress.memory
        np.testing.assert_allclose(numbers(memory.importance), importance, atol=1e-12)
        np.testing.assert_allclose(numbers(stages[task].progress.params), theta, atol=1e-12)
    assert importance.max() > 0.01


def test_si_may_count_paths_below_zero_as_none(drive, clouds, ends):
    """Where the task began and ended at one point Ω = max(ω, 0)/ξ."""
    driven, omega = drive(cl.si(1.0, damping=0.5, positive=True)(learning.backprop(MODEL)), clouds("task")), ends[0]
    params, _, memory = driven.begin()
    _, after = driven.learner.end_task(memory._replace(path=omega), params, driven.task(0), jax.random.key(3))
    np.testing.assert_allclose(numbers(after.importance), np.maximum(numbers(omega), 0) / 0.5)
    assert numbers(omega).min() < 0


def test_si_adds_up_what_the_loss_fell_by(si_run, drive, clouds):
    """Law: for small steps Σ ω is the fall of the loss along the way; here to a tenth, in the first task."""
    driven = drive(cl.si(1.0, damping=1e-12)(learning.backprop(MODEL)), clouds("task"), optax.sgd(0.01), steps=5)
    stage = driven.stage(driven.begin(), 0)
    way = numbers(stage.progress.params) - numbers(driven.begin().params)
    path = numbers(stage.progress.memory.importance) * (way**2 + 1e-12)
    fall = float(stage.loss[0] - stage.loss[-1]) * 5 / 4  # the last step's fall is not in the curve
    np.testing.assert_allclose(path.sum(), fall, rtol=0.1)


def test_mas_is_the_sensitivity_of_the_squared_norm_row_by_row(si_run):
    driven, _ = si_run
    batch = jax.tree.map(lambda leaf: leaf[:3], driven.rows(0))._replace(weight=jnp.array([0.5, 0.0, 2.0]))
    alive = np.flatnonzero(np.asarray(batch.active[0]))
    params = MODEL.init(jax.random.key(5))

    @jax.jit
    def by_jacobian(params, x):
        logits, jacobian = MODEL.apply(params, x)[0][alive], jax.jacrev(lambda p: MODEL.apply(p, x)[0][alive])(params)
        return jax.tree.map(lambda j: jnp.abs(2 * jnp.tensordot(logits, j, 1)), jacobian)

    rows = [by_jacobian(params, x) for x in batch.x]
    expected = trees.add(trees.scale(0.5, rows[0]), trees.scale(2.0, rows[2]))
    found = jax.jit(output_sensitivity, static_argnums=0)(MODEL, params, batch)
    chex.assert_trees_all_close(found, expected, atol=1e-12)
    mean_first = jax.tree.map(lambda a, c: jnp.abs(0.5 * a - 2.0 * c), rows[0], rows[2])
    assert np.abs(numbers(mean_first) - numbers(found)).max() > 1e-3  # control: signs would cancel between rows


def after_tasks(driven, ends):
    """The memory after tasks that ended at these weights, without any training."""
    memory = driven.begin().memory
    end = jax.jit(lambda m, p, n: driven.learner.end_task(m, p, driven.task(n), jax.random.key(3))[1])
    for number, params in enumerate(ends):
        memory = end(memory, params, jnp.int32(number))
    return memory


@pytest.fixture(scope="module")
def ends():
    return [MODEL.init(jax.random.key(seed)) for seed in (11, 12, 13)]


@pytest.fixture(scope="module")
def consolidated(clouds, drive, ends):
    """Memories after two tasks, of every penalty."""
    strategies = {
        "l2": cl.l2_anchor(STRENGTH),
        "mas": cl.mas(STRENGTH),
        "online": cl.online_ewc(STRENGTH, 0.6),
        "online, all kept": cl.online_ewc(STRENGTH, 1.0),
        "offline": cl.ewc(STRENGTH),
    }
    drives = {name: drive(s(learning.backprop(MODEL)), clouds("task")) for name, s in strategies.items()}
    return {name: (driven, after_tasks(driven, ends[:2])) for name, driven in drives.items()}


def test_online_ewc_decays_what_it_adds_to(consolidated, ends):
    """γ (γ F_1 + F_2) around the newest anchor; with γ = 1 the sum that offline EWC has too."""
    driven, memory = consolidated["online"]
    of_task = jax.jit(lambda p, b: trees.scale(1 / 8, cl.fisher(MODEL, p, b, jax.random.key(0))))
    fishers = [of_task(params, driven.rows(task)) for task, params in enumerate(ends[:2])]
    expected = jax.tree.map(lambda one, two: 0.6 * (0.6 * one + two), *fishers)
    chex.assert_trees_all_close(memory.importance, expected, atol=1e-12)
    chex.assert_trees_all_equal(memory.anchor, ends[1])
    chex.assert_trees_all_close(
        consolidated["online, all kept"][1].importance, consolidated["offline"][1].importance, atol=1e-12
    )


def test_mas_sums_the_tasks_means(consolidated, ends):
    driven, memory = consolidated["mas"]
    mean = jax.jit(lambda p, b: trees.scale(1 / 8, output_sensitivity(MODEL, p, b)))
    expected = trees.add(*(mean(params, driven.rows(task)) for task, params in enumerate(ends[:2])))
    chex.assert_trees_all_close(memory.importance, expected, atol=1e-12)
    chex.assert_trees_all_equal(memory.anchor, ends[1])


@pytest.mark.parametrize("strategy", [cl.ewc, cl.online_ewc, cl.mas])
def test_importances_are_taken_over_the_samples_that_are_asked_for(strategy, clouds, drive, ends):
    """Three of eight rows, those that the key of the task's end draws."""
    of_batch = lambda batch, key: (
        output_sensitivity(MODEL, ends[0], batch) if strategy is cl.mas else cl.fisher(MODEL, ends[0], batch, key)
    )
    driven = drive(strategy(1.0, samples=3)(learning.backprop(MODEL)), clouds("task"))
    own_key = jax.random.split(jax.random.key(3))[1]
    expected = jax.jit(lambda key: mean_of_task(of_batch, ends[0], driven.task(0), key, 3))(own_key)
    chex.assert_trees_all_close(after_tasks(driven, ends[:1]).importance, expected, atol=1e-12)


@pytest.mark.parametrize(("name", "half"), [("l2", 0.5), ("online", 0.5), ("mas", 1.0)])
def test_the_pull_is_the_gradient_of_the_penalty_as_written(consolidated, ends, name, half):
    """With the ½ that the docstring promises, or without."""
    driven, memory = consolidated[name]
    assert isinstance(memory, Anchored)
    penalty = lambda p: (
        half
        * STRENGTH
        * sum(
            jnp.sum(f * (q - a) ** 2)
            for f, q, a in zip(*map(jax.tree.leaves, (memory.importance, p, memory.anchor)), strict=True)
        )
    )
    gradient = jax.jit(
        lambda learner_memory, p: driven.learner.gradient(learner_memory, p, driven.rows(2), jax.random.key(0))[0]
    )
    without = memory._replace(strength=0 * memory.strength)
    found = trees.subtract(gradient(memory, ends[2]), gradient(without, ends[2]))
    chex.assert_trees_all_close(found, jax.grad(penalty)(ends[2]), atol=1e-12)
    assert numbers(found).max() > 1e-3
    plain = jax.jit(lambda p: learning.backprop(MODEL).gradient((), p, driven.rows(2), jax.random.key(0))[0])
    chex.assert_trees_all_equal(gradient(without, ends[2]), plain(ends[2]))  # strength 0 is naive, bit for bit


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.l2_anchor(-1.0), "strength must be at least 0"),
        (lambda: cl.si(float("nan")), "strength must be at least 0, got nan"),
        (lambda: cl.ewc(np.float32(-3)), "strength must be at least 0, got -3"),
        (lambda: cl.ewc(float("inf")), "strength must be at least 0, got inf"),
        (lambda: cl.l2_anchor(jnp.float32(-1)), "strength must be at least 0, got -1"),
        (lambda: cl.si(1.0, damping=0.0), "damping must be positive, got 0.0"),
        (lambda: cl.mas(1.0, samples=0), "samples must be at least 1, got 0"),
        (lambda: cl.online_ewc(1.0, 1.5), r"gamma must be in \[0, 1\], got 1.5"),
        (lambda: cl.online_ewc(1.0, fisher="diagonal"), "fisher must be"),
    ],
)
def test_what_cannot_be_a_penalty_is_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
