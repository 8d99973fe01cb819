"""FROMP against a dense Gaussian process in NumPy: Jacobians row by row, one inverse, one quadratic form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import continual as cl
from bptoolkit import learning, trees
from bptoolkit.continual.functional import JITTER, inverse, kernels, memorable
from bptoolkit.models import mlp
from bptoolkit.types import Batch

TAU, PRIOR, PER_CLASS = 0.3, 0.5, 2
MODEL = mlp(4, 5, 6)
RULE = learning.backprop(MODEL)


@pytest.fixture(scope="module")
def driven(clouds, drive):
    return drive(cl.fromp(TAU, PER_CLASS, prior=PRIOR, rows=8)(RULE), clouds("task"))


@pytest.fixture(scope="module")
def after_two(driven):
    """Two tasks that ended at random weights, and where the net is now."""
    ends = [MODEL.init(jax.random.key(seed)) for seed in (5, 6, 7)]
    memory = driven.begin().memory
    end = jax.jit(lambda m, p, n: driven.learner.end_task(m, p, driven.task(n), jax.random.key(3))[1])
    for number in range(2):
        memory = end(memory, ends[number], jnp.int32(number))
    return memory, ends


def of_heads(alive):
    """Probabilities over the active outputs, and their Jacobian by all weights in a row."""

    @jax.jit
    def answer(params, x):
        p = lambda params: jax.nn.softmax(MODEL.apply(params, x)[0][jnp.array(alive)])
        slope = jax.jacrev(p)(params)
        return p(params), jnp.concatenate([leaf.reshape(len(alive), -1) for leaf in jax.tree.leaves(slope)], 1)

    return answer


def test_the_pull_is_that_of_a_dense_gaussian_process(driven, after_two):
    """All rows of two tasks are looked at (8 of 8); Σ from the Fisher summed over both tasks' rows, at their ends."""
    memory, ends = after_two
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    precision = np.zeros_like(flat(ends[0]))
    for task in range(2):
        fisher = jax.jit(cl.fisher, static_argnums=0)(MODEL, ends[task], driven.rows(task), jax.random.key(0))
        precision += flat(fisher)  # weights are one: a sum over rows
    variance = 1 / (precision + PRIOR)

    expected = np.zeros_like(precision)
    for task in range(2):
        rows = jax.tree.map(lambda leaf, task=task: leaf[task], memory.rows)
        answer = of_heads(np.flatnonzero(np.asarray(rows.active[0])))
        old = [answer(ends[1], x) for x in rows.x]  # means and kernels are those of the last end
        now = [answer(ends[2], x) for x in rows.x]
        for c in range(2):
            j_old, j_now = (np.stack([np.asarray(j[c]) for _, j in many]) for many in (old, now))
            kernel = (j_old * variance) @ j_old.T + JITTER * np.eye(len(j_old))
            gap = np.array([float(p[c] - q[c]) for (p, _), (q, _) in zip(now, old, strict=True)])
            expected += TAU * j_now.T @ np.linalg.solve(kernel, gap)

    gradient = jax.jit(lambda m, p: driven.learner.gradient(m, p, driven.rows(2), jax.random.key(0))[0])
    found = trees.subtract(gradient(memory, ends[2]), gradient(memory._replace(tau=jnp.zeros(())), ends[2]))
    np.testing.assert_allclose(flat(found), expected, rtol=1e-6, atol=1e-8)
    assert np.abs(expected).max() > 0.01


def test_at_the_last_end_nothing_pulls_and_neither_in_the_first_task(driven, after_two):
    """Law; and the plain gradient is the rule's own."""
    memory, ends = after_two
    gradient = jax.jit(lambda m, p: driven.learner.gradient(m, p, driven.rows(2), jax.random.key(0))[0])
    plain = jax.jit(lambda p: RULE.gradient((), p, driven.rows(2), jax.random.key(0))[0])
    chex.assert_trees_all_close(gradient(memory, ends[1]), plain(ends[1]), atol=1e-9)
    chex.assert_trees_all_close(gradient(driven.begin().memory, ends[2]), plain(ends[2]), atol=1e-12)


def test_memorable_rows_are_the_least_certain_of_each_class(driven):
    params = MODEL.init(jax.random.key(5))
    rows = driven.rows(1)
    chosen = jax.jit(lambda p: memorable(MODEL, p, driven.task(1), PER_CLASS, 2))(params)
    alive = np.flatnonzero(np.asarray(rows.active[0]))
    p = jax.nn.softmax(jax.vmap(MODEL.apply, (None, 0))(params, rows.x)[0][:, alive])
    score, label = np.asarray((p * (1 - p)).sum(1)), np.asarray(rows.target[:, alive]).argmax(1)
    expected = {
        int(i) for c in range(2) for i in np.flatnonzero(label == c)[np.argsort(-score[label == c])[:PER_CLASS]]
    }
    assert set(np.asarray(chosen.index)) == {int(np.asarray(rows.index)[i]) for i in expected}
    assert (np.asarray(chosen.weight) == 1).all()


def test_elimination_inverts():
    a = np.random.default_rng(0).normal(size=(12, 12))
    positive = a @ a.T + 0.1 * np.eye(12)
    np.testing.assert_allclose(jax.jit(inverse)(positive), np.linalg.inv(positive), rtol=1e-8, atol=1e-9)


def test_in_a_narrow_dtype_a_kernel_without_rank_stays_definite():
    """float32, four memorable rows that are one row: the inverse is finite and its quadratic form positive."""
    narrow = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
    params = narrow(MODEL.init(jax.random.key(5)))
    rows = Batch(
        x=jnp.ones((4, 4), jnp.float32),
        target=jnp.zeros((4, 6), jnp.float32),
        active=jnp.ones((4, 6), bool),
        weight=jnp.ones(4, jnp.float32),
        temperature=jnp.ones(4, jnp.float32),
        task=jnp.zeros(4, jnp.int32),
        index=jnp.arange(4, dtype=jnp.int32),
    )
    variance = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e5), params)
    _, inverses = jax.jit(kernels, static_argnums=0)(MODEL, params, rows, variance)
    assert np.isfinite(inverses).all()
    assert (np.linalg.eigvalsh(np.asarray(inverses, np.float64)) > 0).all()


def test_a_long_gradient_is_shortened_to_the_clip(drive, clouds):
    learner = cl.fromp(0.0, 1, clip=0.01)(RULE)
    driven = drive(learner, clouds("task"))
    params = MODEL.init(jax.random.key(5))
    found, plain = (
        jax.tree.leaves(jax.jit(one.gradient)(memory, params, driven.rows(0), jax.random.key(0))[0])
        for one, memory in ((learner, driven.begin().memory), (RULE, ()))
    )
    norm = lambda leaves: np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves))
    np.testing.assert_allclose(norm(found), 0.01)
    np.testing.assert_allclose(found[0] / norm(found), plain[0] / norm(plain), atol=1e-12)


def test_a_gradient_shorter_than_the_clip_stays(drive, clouds):
    learner = cl.fromp(0.0, 1, clip=100.0)(RULE)
    driven = drive(learner, clouds("task"))
    params = MODEL.init(jax.random.key(5))
    found, plain = (
        jax.jit(one.gradient)(memory, params, driven.rows(0), jax.random.key(0))[0]
        for one, memory in ((learner, driven.begin().memory), (RULE, ()))
    )
    chex.assert_trees_all_close(found, plain, atol=1e-12)


def test_around_gates_nothing_pulls_where_both_tasks_ended(drive, clouds):
    """Law: answers are held, and taken again, under each task's own gates; the negative control is another net."""
    model = mlp(4, 8, 6)
    driven = drive(cl.fromp(TAU, PER_CLASS, prior=PRIOR, rows=8)(cl.xdg(0.5)(learning.backprop(model))), clouds("task"))
    end, other = (model.init(jax.random.key(seed)) for seed in (5, 6))
    memory = driven.begin().memory
    close = jax.jit(lambda m, n: driven.learner.end_task(m, end, driven.task(n), jax.random.key(3))[1])
    for number in range(2):
        memory = close(memory, jnp.int32(number))
    gradient = jax.jit(lambda m, p: driven.learner.gradient(m, p, driven.rows(2), jax.random.key(0))[0])
    pull = lambda p: trees.subtract(gradient(memory, p), gradient(memory._replace(tau=jnp.zeros(())), p))
    largest = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
    assert largest(pull(end)) < 1e-9
    assert largest(pull(other)) > 1e-3


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.fromp(-1.0), "tau must be at least 0"),
        (lambda: cl.fromp(1.0, 0), "per_class must be at least 1, got 0"),
        (lambda: cl.fromp(1.0, prior=0.0), "prior must be positive"),
        (lambda: cl.fromp(1.0, clip=-1.0), "clip must be positive"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
