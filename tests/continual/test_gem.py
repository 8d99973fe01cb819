"""A-GEM and GEM: the turned gradient against its closed form and against SciPy, and what it must never do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.continual.gem import dot, project, project_all
from bptoolkit.continual.nonnegative import minimise_above
from bptoolkit.continual.streams import spec
from bptoolkit.models import mlp

RULE = learning.backprop(mlp(4, 5, 6))


def trees_of(seed, rows=None):
    """A random tree, or so many stacked along a first axis."""
    a, b = jax.random.split(jax.random.key(seed))
    lead = () if rows is None else (rows,)
    return {"w": jax.random.normal(a, (*lead, 3, 2)), "b": jax.random.normal(b, (*lead, 2))}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("seed", range(4))
def test_a_gradient_in_conflict_loses_its_part_along_the_reference(seed):
    """(I − r rᵀ/rᵀr) g, by a matrix of its own; and it no longer points uphill.  g and −g: one is in conflict."""
    g, r = trees_of(seed), trees_of(seed + 50)
    g = g if dot(g, r) < 0 else jax.tree.map(jnp.negative, g)
    turned = project(g, r)
    onto = np.eye(8) - np.outer(flat(r), flat(r)) / (flat(r) @ flat(r))
    np.testing.assert_allclose(flat(turned), onto @ flat(g), atol=1e-12)
    assert abs(float(dot(turned, r))) < 1e-12
    assert float(dot(g, r)) < -1e-3  # negative control: before, it did
    other = jax.tree.map(jnp.negative, g)
    chex.assert_trees_all_equal(project(other, r), other)


def test_epsilon_stands_under_the_fraction():
    """With ε = ⟨r, r⟩ half of the part along r is taken away."""
    g, r = trees_of(1), jax.tree.map(jnp.negative, trees_of(1))
    half = project(g, r, float(dot(r, r)))
    np.testing.assert_allclose(flat(half), flat(g) / 2, rtol=1e-12)


def test_the_ridge_stands_under_the_fraction():
    """With ridge ⟨g_k, g_k⟩ half of the part along g_k is taken away."""
    past = trees_of(1, rows=1)
    g = jax.tree.map(lambda leaf: -leaf[0], past)
    half = project_all(g, past, jnp.ones(1, bool), 0.0, float(dot(g, g)))
    np.testing.assert_allclose(flat(half), flat(g) / 2, rtol=1e-6)


def by_scipy(gram, along, margin):
    value = lambda v: v @ gram @ v / 2 + along @ v
    slope = lambda v: gram @ v + along
    found = minimize(
        value, np.full(len(along), margin + 1.0), jac=slope, bounds=[(margin, None)] * len(along), method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )  # fmt: skip
    return found.x


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("n", [1, 2, 7, 19])
def test_the_quadratic_programme_against_scipy_and_its_conditions(n, margin):
    """Ten programmes of each size: v ≥ m, μ = Pv + q ≥ 0, μ (v − m) = 0 to 1e-8, and SLSQP's point."""
    rng = np.random.default_rng(n)
    for _ in range(10):
        rows = rng.normal(size=(n, n + 3)) * rng.uniform(0.1, 10, (n, 1))
        p, q = rows @ rows.T + 1e-3 * np.eye(n), 5 * rng.normal(size=n)
        v, multiplier, solved = minimal(jnp.asarray(p), jnp.asarray(q), margin)
        assert solved
        scale = max(1.0, float(np.abs(q + p @ np.full(n, margin)).max()))
        assert np.min(v - margin) >= 0
        assert np.min(multiplier) >= -1e-8 * scale
        assert np.abs(multiplier * (v - margin)).max() <= 1e-8 * scale
        np.testing.assert_allclose(multiplier, p @ v + q, atol=1e-10)
        theirs = by_scipy(p, q, margin)
        value = lambda v, p=p, q=q: v @ p @ v / 2 + q @ v
        assert value(np.asarray(v)) <= value(theirs) + 1e-9 * scale
        np.testing.assert_allclose(v, theirs, atol=2e-3)


minimal = jax.jit(minimise_above)
onto_all = jax.jit(lambda g, past, behind: project_all(g, past, behind, 0.0, 0.0))


def test_programmes_under_vmap_are_those_one_by_one():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 7, 9))
    p, q = jnp.asarray(rows @ rows.swapaxes(1, 2)), jnp.asarray(rng.normal(size=(6, 7)))
    together = jax.jit(jax.vmap(minimise_above))(p, q)
    for i in range(6):
        np.testing.assert_allclose(together.value[i], minimal(p[i], q[i], 0.0).value, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_task_behind_is_left_in_conflict(seed):
    """Three of five tasks behind, no margin, no ridge: ⟨g̃, g_k⟩ ≥ 0, and no closer g̃ has that (it is a projection).

    The projection onto a convex cone: ⟨g − g̃, g̃⟩ = 0.  The two tasks ahead play no part.
    """
    g, past = trees_of(seed), trees_of(seed + 9, rows=5)
    worst = jax.tree.map(lambda g, p: g - 2 * p[0] - p[1], g, past)  # in conflict with two of them at least
    behind = jnp.arange(5) < 3
    turned = onto_all(worst, past, behind)
    rows = np.concatenate([np.reshape(leaf, (5, -1)) for leaf in jax.tree.leaves(past)], axis=1)
    assert (rows[:3] @ flat(worst)).min() < 0
    assert (rows[:3] @ flat(turned)).min() >= -1e-10
    assert abs((flat(worst) - flat(turned)) @ flat(turned)) < 1e-9
    blanked = jax.tree.map(lambda leaf: leaf.at[3:].set(0), past)
    chex.assert_trees_all_close(turned, onto_all(worst, blanked, behind), atol=1e-12)


def test_without_a_conflict_nothing_is_turned():
    """Also with a margin, which alone would pull, and with a third task that is still to come."""
    past = trees_of(0, rows=3)
    g = jax.tree.map(lambda leaf: 10 * leaf[0], past)
    agreeing = jax.tree.map(lambda leaf: leaf.at[1].set(leaf[0]), past)
    chex.assert_trees_all_equal(project_all(g, agreeing, jnp.arange(3) < 2, 0.5, 1e-3), g)


def test_agem_turns_the_gradient_of_the_current_rows_by_that_of_stored_ones(after_tasks, clouds_by_task, rows_of_task):
    """One task behind, all of whose stored rows are the reference: 2 rows of each of its classes."""
    learner = cl.agem(2, rows=4, epochs=True)(RULE)
    params, memory, indices = after_tasks(clouds_by_task, learner, 1)
    gradient, plain = jax.jit(learner.gradient), jax.jit(RULE.gradient)
    batch = rows_of_task(clouds_by_task, indices, 1, jnp.arange(4, dtype=jnp.int32))
    stored = jax.tree.map(lambda leaf: leaf[0], memory.rows)
    reference, current = (plain((), params, rows, jax.random.key(0))[0] for rows in (stored, batch))
    found, info, _ = gradient(memory, params, batch, jax.random.key(5))
    assert dot(current, reference) < 0
    chex.assert_trees_all_close(found, project(current, reference, 1e-7), atol=1e-10)
    assert info.weight.shape == (4,)

    fresh = learner.init(params, spec(clouds_by_task), jax.random.key(0))
    untouched, _, _ = gradient(fresh, params, batch, jax.random.key(5))
    chex.assert_trees_all_close(untouched, current, atol=1e-14)


def test_gem_goes_uphill_on_no_stored_task(after_tasks, clouds_by_task, rows_of_task):
    """Two tasks behind: the turned gradient against each task's own, computed anew."""
    learner = cl.gem(3, margin=0.0, ridge=0.0)(RULE)
    params, memory, indices = after_tasks(clouds_by_task, learner, 2)
    assert memory.rows.weight[:2].tolist() == [[1, 1, 1], [1, 1, 1]]
    batch = rows_of_task(clouds_by_task, indices, 2, jnp.arange(4, dtype=jnp.int32))
    found, _, _ = jax.jit(learner.gradient)(memory, params, batch, jax.random.key(5))
    plain = jax.jit(RULE.gradient)
    current = plain((), params, batch, jax.random.key(0))[0]
    past = [
        plain((), params, jax.tree.map(lambda leaf, k=k: leaf[k], memory.rows), jax.random.key(0))[0] for k in range(2)
    ]
    assert min(float(dot(current, p)) for p in past) < 0
    assert min(float(dot(found, p)) for p in past) > -1e-10


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.gem(0), "per_task must be at least 1"),
        (lambda: cl.gem(3, margin=-0.1), "margin must be at least 0, got -0.1"),
        (lambda: cl.agem(2, rows=0), "rows must be at least 1, got 0"),
    ],
)
def test_bad_numbers_are_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


def test_fewer_rows_than_classes_are_refused(clouds_by_task):
    learner = cl.gem(1)(RULE)
    with pytest.raises(ValueError, match="per_task must be at least the number of classes, 2"):
        learner.init(learner.model.init(jax.random.key(0)), spec(clouds_by_task), jax.random.key(0))
