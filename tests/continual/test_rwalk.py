"""RWalk against a NumPy loop over the same two tasks, per-example gradients by `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.models import mlp

MODEL = mlp(4, 5, 6)
STRENGTH, DECAY, EVERY, DAMPING, RATE, MOMENTUM, STEPS = 0.5, 0.7, 2, 1e-2, 0.3, 0.9, 5


def test_scores_and_fishers_are_those_of_a_plain_loop(drive, clouds):
    """Under momentum, with which some weights go uphill for a stretch: those count as 0."""
    strategy = cl.rwalk(STRENGTH, decay=DECAY, every=EVERY, damping=DAMPING)
    driven = drive(strategy(learning.backprop(MODEL)), clouds("task"), optax.sgd(RATE, MOMENTUM), steps=STEPS)
    progress = driven.begin()
    theta, unravel = ravel_pytree(progress.params)
    theta = anchor = np.asarray(theta)
    importance = fisher = score = velocity = np.zeros_like(theta)
    falls = []

    @jax.jit
    def rows_slopes(theta, batch):
        def loss(theta, row):
            log_p = jax.nn.log_softmax(jnp.where(row.active, MODEL.apply(unravel(theta), row.x)[0], -1e30))
            return -jnp.sum(row.target * log_p)

        return jax.vmap(jax.grad(loss), (None, 0))(theta, batch)

    to_one = lambda v: v / v.max()
    for task in range(2):
        path, fall, stop = np.zeros_like(theta), np.zeros_like(theta), theta
        for step in range(1, STEPS + 1):
            slopes = np.asarray(rows_slopes(theta, driven.rows(task)))
            g = slopes.mean(0) + 2 * STRENGTH * importance * (theta - anchor)
            fisher = DECAY * (slopes**2).mean(0) + (1 - DECAY) * fisher
            velocity = g + MOMENTUM * velocity
            moved = theta - RATE * velocity
            fall = fall - g * (moved - theta)
            theta = moved
            if step % EVERY == 0:
                falls.append(fall.min())
                path = path + np.maximum(fall, 0) / (0.5 * fisher * (theta - stop) ** 2 + DAMPING)
                fall, stop = np.zeros_like(theta), theta
        path = path + np.maximum(fall, 0) / (0.5 * fisher * (theta - stop) ** 2 + DAMPING)  # the fifth step alone
        score = path if task == 0 else (score + path) / 2
        importance, anchor = to_one(fisher) + to_one(score), theta
        stage = driven.stage(progress, task)
        progress = stage.progress
        np.testing.assert_allclose(ravel_pytree(progress.params)[0], theta, atol=1e-10)
        np.testing.assert_allclose(ravel_pytree(progress.memory.importance)[0], importance, atol=1e-9)
    assert 1 < importance.max() <= 2
    assert min(falls) < -1e-3


def test_around_gates_what_leads_to_silent_units_has_no_information(drive, clouds):
    driven = drive(
        cl.rwalk(1.0)(cl.xdg(0.5)(learning.backprop(mlp(4, 5, 6, activation=jnp.tanh)))), clouds("task"), steps=2
    )
    memory = driven.stage(driven.begin(), 0).progress.memory
    into, gate = np.asarray(memory.path.fisher[0]["w"]), np.asarray(memory.inner.gates[0][0])
    np.testing.assert_array_equal(into[:, gate == 0], 0)
    assert into[:, gate == 1].any()


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.rwalk(-1.0), "strength must be at least 0"),
        (lambda: cl.rwalk(1.0, decay=2.0), r"decay must be in \[0, 1\]"),
        (lambda: cl.rwalk(1.0, every=0), "every must be at least 1, got 0"),
        (lambda: cl.rwalk(1.0, fisher="sampled"), "rwalk needs fisher .* got 'sampled'"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
