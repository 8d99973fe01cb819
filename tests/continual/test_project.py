"""Orthogonal gradient descent: an orthonormal basis, updates without any part in it, answers that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.continual.project import extend, project
from bptoolkit.models import mlp

MODEL = mlp(4, 5, 6)


@pytest.fixture(scope="module")
def driven(clouds, drive):
    return drive(cl.ogd(8)(learning.backprop(MODEL)), clouds("task"), optax.sgd(0.01, momentum=0.9), steps=3)


@pytest.fixture(scope="module")
def stages(driven):
    return driven.run()


def test_the_basis_spans_the_gradients_of_the_true_outputs(driven, stages):
    """Orthonormal to 1e-10, as long as the gradients' rank; each gradient, by `jax.grad` of one logit, lies in it."""
    end = stages[0].progress
    basis = np.asarray(end.memory.basis)
    used = basis[np.abs(basis).sum(1) > 0]
    np.testing.assert_allclose(used @ used.T, np.eye(len(used)), atol=1e-10)
    rows = driven.rows(0)
    true = np.asarray(rows.target).argmax(1)
    slope = jax.jit(lambda p, x, y: ravel_pytree(jax.grad(lambda p: MODEL.apply(p, x)[0][y])(p))[0])
    slopes = np.stack([slope(end.params, x, y) for x, y in zip(rows.x, true, strict=True)])
    assert len(used) == np.linalg.matrix_rank(slopes, tol=1e-5)
    np.testing.assert_allclose(slopes - slopes @ used.T @ used, 0, atol=1e-5)


def test_updates_are_orthogonal_to_what_is_kept(stages):
    """The whole way of a task, under momentum: no part in the basis of earlier tasks, to 1e-10; the first is free."""
    way = lambda a, b: np.asarray(ravel_pytree(b.params)[0] - ravel_pytree(a.params)[0])
    one, two = stages[0].progress, stages[1].progress
    moved = way(one, two)
    assert np.abs(np.asarray(one.memory.basis) @ moved).max() < 1e-10
    assert np.linalg.norm(moved) > 1e-3


def test_earlier_answers_hold_to_first_order(driven, stages, clouds, drive):
    """The true outputs of task 0 move far less than under naive training at the same rate."""
    rows = driven.rows(0)
    true = np.asarray(rows.target) > 0
    shift = lambda run: np.abs((run[1].logits[0] - run[0].logits[0])[true]).max()
    naive = drive(learning.backprop(MODEL), clouds("task"), driven.optimizer, steps=3).run()
    assert shift(stages) < 0.2 * shift(naive)


def test_what_is_not_new_takes_no_place():
    basis = extend(jnp.zeros((3, 4)), jnp.array([[3.0, 0, 0, 0], [5.0, 0, 0, 0], [1.0, 1, 0, 0]]), jnp.int32(0))
    np.testing.assert_allclose(basis, [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]], atol=1e-15)
    np.testing.assert_allclose(project(basis, jnp.array([1.0, 2, 3, 4])), [0, 0, 3, 4], atol=1e-15)


def test_what_rounding_leaves_of_a_direction_is_not_new():
    """Sevenths of three others: what is left of them is some 1e-17 long."""
    three = jax.random.normal(jax.random.key(0), (3, 9))
    basis = extend(jnp.zeros((6, 9)), jnp.concatenate([three, three / 7]), jnp.int32(0))
    np.testing.assert_array_equal(basis[3:], 0)


def test_around_gates_no_direction_leads_to_units_that_are_silent_in_the_task(clouds, drive):
    driven = drive(cl.ogd(2)(cl.xdg(0.5)(learning.backprop(MODEL))), clouds("task"))
    params, _, memory = driven.begin()
    _, after = driven.learner.end_task(memory, params, driven.task(1), jax.random.key(3))
    into = np.asarray(jax.vmap(ravel_pytree(params)[1])(after.basis)[0]["w"])
    gate = np.asarray(memory.inner.gates[0][1])
    np.testing.assert_array_equal(into[:, :, gate == 0], 0)
    assert into[:, :, gate == 1].any()


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="per_task must be at least 1, got 0"):
        cl.ogd(0)
