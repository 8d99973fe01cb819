"""iCaRL against a plain greedy search and its equations; GDumb against training by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.continual.diagnose import features
from bptoolkit.continual.icarl import _among_exemplars, herd
from bptoolkit.continual.streams import spec
from bptoolkit.models import mlp

MODEL = mlp(4, 5, 6)
RULE = learning.backprop(MODEL, learning.binary_cross_entropy)


@pytest.mark.parametrize("seed", range(3))
def test_herding_is_the_greedy_search(seed):
    """Five of nine members among twelve rows, by trying every one."""
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(12, 4))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    member = np.arange(12) % 4 != 1
    mean = f[member].mean(0)
    mean /= np.linalg.norm(mean)
    expected = []
    for k in range(1, 6):
        rest = [i for i in np.flatnonzero(member) if i not in expected]
        gap = [np.linalg.norm(mean - (f[expected].sum(0) + f[i]) / k) for i in rest]
        expected.append(rest[int(np.argmin(gap))])
    chosen, there = jax.jit(herd, static_argnums=2)(jnp.asarray(f), jnp.asarray(member), 5)
    assert there.all()
    np.testing.assert_array_equal(chosen, expected)
    assert expected != np.flatnonzero(member)[:5].tolist()  # negative control: they are not merely the first


def test_a_class_with_too_few_rows_gives_all_it_has():
    f, member = jnp.eye(6), jnp.arange(6) < 3
    chosen, there = herd(f, member, 5)
    assert there.tolist() == [True, True, True, False, False]
    assert set(np.asarray(chosen[:3]).tolist()) == {0, 1, 2}


def test_answers_are_those_of_the_nearest_mean_of_exemplars(after_tasks, clouds_by_task, rows_of_task):
    learner = cl.icarl(2)(RULE)
    params, memory, indices = after_tasks(clouds_by_task, learner, 2)
    batch = rows_of_task(clouds_by_task, indices, 0, jnp.arange(6, dtype=jnp.int32))
    scores, _ = jax.jit(learner.predict)(memory, params, batch)
    unit = lambda f: f / np.linalg.norm(f, axis=-1, keepdims=True)
    see = lambda x: unit(np.asarray(jax.vmap(features(MODEL), (None, 0))(params, x)))
    rows = jax.tree.map(lambda leaf: leaf[:2].reshape(-1, *leaf.shape[2:]), memory.rows)
    labels = np.asarray(rows.target.argmax(1))
    for c in range(6):
        own = see(rows.x)[labels == c]
        if len(own) == 0:
            assert (scores[:, c] == -8).all()  # a distance is at most 4
        else:
            assert len(own) == 2
            distance = np.sum((see(batch.x) - unit(own.mean(0))) ** 2, axis=1)
            np.testing.assert_allclose(scores[:, c], -distance, atol=1e-10)
    fresh = learner.init(params, spec(clouds_by_task), jax.random.key(0))
    logits = jax.vmap(lambda x: MODEL.apply(params, x)[0])(batch.x)
    np.testing.assert_allclose(learner.predict(fresh, params, batch)[0], logits, atol=1e-12)


def test_old_answers_are_the_targets_of_known_classes(after_tasks, clouds_by_task, rows_of_task):
    """Σ over known and current classes of binary cross-entropies; for known ones the target is σ(o_old/2)."""
    seen = []

    def gradient(memory, params, batch, key):
        seen.append(batch)
        return RULE.gradient(memory, params, batch, key)

    learner = cl.icarl(2)(RULE._replace(gradient=gradient))
    params, memory, indices = after_tasks(clouds_by_task, learner, 1)
    batch = rows_of_task(clouds_by_task, indices, 1, jnp.arange(12, dtype=jnp.int32) % 6)
    both = jax.jit(lambda *given: (learner.gradient(*given), seen[-1]))
    now = MODEL.init(jax.random.key(8))
    (_, info, after), rows = both(memory, now, batch, jax.random.key(5))
    known, current = np.asarray(memory.known), np.asarray(batch.target).any(0)
    assert known.sum() == 2
    assert not (known & current).any()
    np.testing.assert_array_equal(rows.active, np.tile(known | current, (12, 1)))
    np.testing.assert_array_equal(after.current, current)
    old, new = (jax.vmap(lambda x, net=net: MODEL.apply(net, x)[0])(rows.x) for net in (params, now))
    np.testing.assert_allclose(rows.target[:, known], jax.nn.sigmoid(old / 2)[:, known], atol=1e-12)
    assert set(np.asarray(rows.task).tolist()) == {0, 1}  # exemplars took the place of some rows

    o, t, on = (np.asarray(a) for a in (new, rows.target, rows.active))
    p = 1 / (1 + np.exp(-o))
    crossed = -np.where(on, t * np.log(p) + (1 - t) * np.log(1 - p), 0).sum(1)
    np.testing.assert_allclose(info.loss, crossed.mean(), rtol=1e-9)


def test_a_class_is_current_once_a_row_of_it_has_counted_until_the_task_ends(clouds, drive):
    driven = drive(cl.icarl(2)(RULE), clouds())
    params, _, memory = driven.stage(driven.begin(), 0).progress
    assert not memory.current.any()
    batch, gradient = driven.rows(1), jax.jit(driven.learner.gradient)
    label = np.asarray(batch.target.argmax(1))
    classes = list(dict.fromkeys(label.tolist()))
    for number, c in enumerate(classes):
        counted = batch._replace(weight=jnp.asarray(label == c, float))
        _, _, memory = gradient(memory, params, counted, jax.random.key(0))
        assert set(np.flatnonzero(memory.current)) == set(classes[: number + 1])


def test_rows_give_way_at_the_rate_of_exemplars_among_exemplars_and_the_rows_of_a_task(
    after_tasks, clouds_by_task, rows_of_task
):
    """Of 2000 rows: eight exemplars, beside as many rows as the two tasks behind had on average; to 5 deviations."""
    _, memory, indices = after_tasks(clouds_by_task, cl.icarl(2)(RULE), 2)
    batch = rows_of_task(clouds_by_task, indices, 2, jnp.zeros(2000, jnp.int32))
    given_way = np.mean(np.asarray(jax.jit(_among_exemplars)(memory, batch, jax.random.key(0)).task) < 2)
    share = 8 / (8 + int(indices.train.count[:2].sum()) // 2)
    assert abs(given_way - share) < 5 * np.sqrt(share * (1 - share) / 2000)


def test_streams_and_models_that_cannot_serve_are_refused(clouds_by_task):
    shared = cl.split(clouds_by_task.data, 2, "domain")
    learner = cl.icarl(2)(learning.backprop(mlp(4, 5, 2)))
    with pytest.raises(ValueError, match="icarl needs classes that are new in each task"):
        learner.init(learner.model.init(jax.random.key(0)), spec(shared), jax.random.key(0))
    for build, sentence in (
        (lambda: cl.icarl(0), "per_class must be at least 1"),
        (lambda: cl.icarl(2, temperature=0.0), "temperature must be positive"),
        (lambda: cl.icarl(2)(cl.xdg(0.5)(RULE)), "tasks see other weights"),
        (lambda: cl.icarl(2)(learning.backprop(MODEL, learning.squared_error)), "got a learner of squared_error"),
        (lambda: cl.icarl(2)(learning.backprop(mlp(4, 6))), "Features need a model with a hidden layer"),
    ):
        with pytest.raises(ValueError, match=sentence):
            build()


def test_icarl_and_gdumb_remember():
    """On easy clouds, through the runner; GDumb moves no weight within a task."""
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 6, 10, 4, spread=0.3), 2)
    run = lambda learner: cl.run(
        cl.Experiment(stream, learner, optax.sgd(0.2), steps=40, batch=10), jax.random.key(0), seeds=2
    )
    rule = learning.backprop(mlp(4, 16, 6), learning.binary_cross_entropy)
    assert cl.average_accuracy(run(cl.icarl(5)(rule))).mean() > 0.8  # naive training ends near 1/3
    dumb = cl.gdumb(5, steps=200, batch=10, optimizer=optax.sgd(0.3, momentum=0.9))(learning.backprop(mlp(4, 16, 6)))
    assert cl.average_accuracy(run(dumb)).mean() > 0.8


def by_hand(params, batches):
    """Gradient descent at rate 0.1 with a velocity of 0.9, on the mean over rows of summed binary cross-entropies."""

    def loss(params, rows):
        lower, upper = params
        o = jax.nn.relu(rows.x @ lower["w"] + lower["b"]) @ upper["w"] + upper["b"]
        each = -rows.target * jax.nn.log_sigmoid(o) - (1 - rows.target) * jax.nn.log_sigmoid(-o)
        return jnp.mean(jnp.sum(jnp.where(rows.active, each, 0), axis=1))

    slope, velocity = jax.jit(jax.grad(loss)), jax.tree.map(jnp.zeros_like, params)
    for rows in batches:
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, slope(params, rows))
        params = jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity)
    return params


def test_gdumb_trains_a_new_net_on_what_it_kept(clouds, drive):
    """By an own loop from `model.init` of its key, over the two rows a class that it kept of two tasks.

    Whatever the net was; negative control: from the net's own weights the same loop ends elsewhere.
    """
    driven = drive(cl.gdumb(2, steps=6, batch=4, optimizer=optax.sgd(0.1, momentum=0.9))(RULE), clouds())
    before = driven.stage(driven.begin(), 0).progress
    end = jax.jit(lambda memory, params, key: driven.learner.end_task(memory, params, driven.task(1), key))
    found, memory = end(before.memory, before.params, jax.random.key(3))
    again, _ = end(before.memory, jax.tree.map(lambda p: p + 1, before.params), jax.random.key(3))
    chex.assert_trees_all_equal(again, found)

    kept = jax.tree.map(lambda leaf: leaf[:2].reshape(8, *leaf.shape[2:]), memory.kept.rows)
    assert (kept.weight == 1).all()
    assert kept.task.tolist() == [0] * 4 + [1] * 4
    _, _, init_key, train_key = jax.random.split(jax.random.key(3), 4)
    rows_key = jax.random.split(train_key)[0]
    places = [jax.random.randint(jax.random.fold_in(rows_key, n), (4,), 0, 8, jnp.int32) for n in range(6)]
    batches = [jax.tree.map(lambda leaf, place=place: leaf[place], kept) for place in places]
    chex.assert_trees_all_close(found, by_hand(MODEL.init(init_key), batches), atol=1e-12)
    warm = by_hand(before.params, batches)
    assert max(jnp.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (found, warm)), strict=True)) > 0.1


def test_no_step_of_the_experiment_moves_gdumbs_net(after_tasks, clouds_by_task, rows_of_task):
    learner = cl.gdumb(2, steps=3, batch=4, optimizer=optax.sgd(0.1))(RULE)
    params, memory, indices = after_tasks(clouds_by_task, learner, 2)
    batch = rows_of_task(clouds_by_task, indices, 2, jnp.arange(4, dtype=jnp.int32))
    grads, info, _ = jax.jit(learner.gradient)(memory, params, batch, jax.random.key(0))
    assert all((g == 0).all() for g in jax.tree.leaves(grads))
    assert np.isfinite(info.loss)
    moved = jax.tree.map(lambda leaf: leaf + 1, params)
    stays, _, _ = learner.after_step(memory, params, moved, (), batch, jax.random.key(0))
    assert stays is params


def test_gdumb_refuses_to_make_no_step():
    with pytest.raises(ValueError, match="steps must be at least 1"):
        cl.gdumb(2, steps=0)
