"""What is left in a net that answers wrongly; calibration; what a strategy keeps in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.continual.diagnose import features, nearest_mean
from bptoolkit.continual.streams import spec
from bptoolkit.learning.learner import rows_of
from bptoolkit.models import equilibrium, mlp, rate_cell
from bptoolkit.types import Model

MODEL = mlp(3, 8, 4)


def rows(n, seed):
    """Four classes on the corners of a tetrahedron; classes 0 and 1 are task 0, the others task 1."""
    centres = jnp.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    y = jnp.arange(n, dtype=jnp.int32) % 4
    x = centres[y] + 0.2 * jax.random.normal(jax.random.key(seed), (n, 3))
    return rows_of(x, y, 4, 1.0)._replace(task=y // 2)


TRAIN, TEST = rows(80, 0), rows(40, 1)
diagnose = jax.jit(lambda params: cl.diagnose(MODEL, params, TRAIN, TEST))


@pytest.fixture(scope="module")
def good():
    """A net of random features whose readout was fitted by scikit-learn."""
    params = MODEL.init(jax.random.key(3))
    hidden = np.asarray(jax.vmap(features(MODEL), (None, 0))(params, TRAIN.x))
    fitted = LogisticRegression(C=100, max_iter=500).fit(hidden, np.asarray(TRAIN.target.argmax(1)))
    return (params[0], {"w": jnp.asarray(fitted.coef_.T), "b": jnp.asarray(fitted.intercept_)})


def test_a_bias_towards_the_last_classes_is_told_from_a_loss(good):
    """A large bias on classes 2 and 3 makes "0, 1" of a net that still knows all: masked, means and probe see it."""
    healthy = diagnose(good)
    assert min(np.min(a) for a in healthy) > 0.9
    biased = (good[0], good[1] | {"b": good[1]["b"] + jnp.array([0, 0, 1e3, 1e3])})
    found = diagnose(biased)
    assert found.plain[0] == 0
    assert found.plain[1] > 0.9
    for left in (found.masked, found.nearest_mean, found.linear_probe):
        assert left[0] > 0.9


def test_a_spoilt_readout_and_a_lost_representation_are_told_apart(good):
    """Negated weights of the readout: masked falls, the features are as they were.  No features: nothing is left."""
    spoilt = diagnose((good[0], jax.tree.map(jnp.negative, good[1])))
    assert spoilt.masked.max() < 0.2
    assert min(spoilt.nearest_mean.min(), spoilt.linear_probe.min()) > 0.9
    lost = diagnose((jax.tree.map(jnp.zeros_like, good[0]), good[1]))
    assert max(a.mean() for a in lost) <= 0.51


def test_nearest_means_are_those_of_a_plain_loop(good):
    hidden = jax.vmap(features(MODEL), (None, 0))
    known, new = (np.asarray(hidden(good, batch.x)) for batch in (TRAIN, TEST))
    some = TRAIN._replace(weight=TRAIN.weight.at[3::4].set(0))  # class 3 has no rows
    scores = np.asarray(nearest_mean(jnp.asarray(known), some, jnp.asarray(new)))
    unit = lambda f: f / np.linalg.norm(f, axis=-1, keepdims=True)
    y = np.asarray(TRAIN.target.argmax(1))
    for c in range(3):
        mean = unit(np.mean([unit(f) for f, own in zip(known, y, strict=True) if own == c], axis=0))
        np.testing.assert_allclose(scores[:, c], [-np.sum((unit(f) - mean) ** 2) for f in new], atol=1e-12)
    assert np.isneginf(scores[:, 3]).all()


def test_features_are_what_the_readout_reads():
    x = jnp.ones(3)
    params = MODEL.init(jax.random.key(0))
    np.testing.assert_allclose(
        features(MODEL)(params, x) @ params[1]["w"] + params[1]["b"], MODEL.apply(params, x)[0], atol=1e-12
    )
    settled = equilibrium(rate_cell(3, 5, 4))
    params = settled.init(jax.random.key(0))
    np.testing.assert_allclose(
        settled.cell.readout(params, features(settled)(params, x)), settled.apply(params, x)[0], atol=1e-9
    )


def test_a_model_without_features_is_refused():
    for model in (mlp(3, 4), Model(MODEL.init, MODEL.apply)):
        with pytest.raises(ValueError, match="need a model with a hidden layer or a settled cell"):
            features(model)


def test_calibration_is_that_of_a_plain_loop():
    logits = 3 * jax.random.normal(jax.random.key(2), (40, 4))
    batch = TEST._replace(weight=TEST.weight.at[5].set(0))
    p = np.asarray(jax.nn.softmax(logits))
    keep = np.asarray(batch.weight) > 0
    top, right = p.max(1), p.argmax(1) == np.asarray(batch.target).argmax(1)
    error = 0.0
    for k in range(10):
        own = keep & (top >= k / 10) & ((top < (k + 1) / 10) | (k == 9))
        error += abs(right[own].mean() - top[own].mean()) * own.sum() / keep.sum() if own.any() else 0
    assert cl.calibration_error(logits, batch, bins=10) == pytest.approx(error, abs=1e-12)
    squares = ((p - np.asarray(batch.target)) ** 2).sum(1)[keep].mean()
    assert cl.brier_score(logits, batch) == pytest.approx(squares, abs=1e-12)


@pytest.mark.parametrize("score", [cl.calibration_error, cl.brier_score])
def test_probabilities_are_those_at_the_temperature_of_each_row(score):
    logits = 3 * jax.random.normal(jax.random.key(2), (40, 4))
    warm = TEST._replace(temperature=jnp.full(40, 2.0))
    np.testing.assert_allclose(score(logits, warm), score(logits / 2, TEST), rtol=1e-12)
    assert score(logits, warm) != score(logits, TEST)


def test_a_row_that_does_not_count_is_not_looked_at():
    """NaN in it changes nothing; in one that counts it shows."""
    logits = jax.random.normal(jax.random.key(2), (40, 4))
    without = TEST._replace(weight=TEST.weight.at[5].set(0))
    spoilt = logits.at[5].set(jnp.nan)
    for score in (cl.calibration_error, cl.brier_score):
        assert score(spoilt, without) == score(logits, without)
        assert np.isnan(score(spoilt, TEST))


@pytest.mark.parametrize("bins", [0, -3, 2.5])
def test_rows_are_counted_in_bins(bins):
    with pytest.raises(ValueError, match="bins must be"):
        cl.calibration_error(TEST.target, TEST, bins=bins)


def test_a_net_sure_of_the_truth_is_calibrated_and_one_sure_of_the_rest_is_not():
    sure = 100 * TEST.target
    assert cl.calibration_error(sure, TEST) < 1e-9
    assert cl.brier_score(sure, TEST) < 1e-9
    assert cl.calibration_error(jnp.roll(sure, 1, axis=1), TEST) == pytest.approx(1)
    assert cl.brier_score(jnp.roll(sure, 1, axis=1), TEST) == pytest.approx(2)


def test_what_a_strategy_keeps_is_counted_in_bytes(clouds_by_task):
    """EWC: a strength and two copies of the weights.  Nothing for naive training.  A row has 4 + 6 + 1 + 1 floats …"""
    rule = learning.backprop(mlp(4, 6))
    described = spec(clouds_by_task)
    assert cl.memory_bytes(cl.naive(rule), described) == 0
    row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(described.example))
    assert row == 8 * (4 + 6 + 1 + 1) + 6 + 4 + 4  # x, target, weight, temperature; active; task, index
    assert cl.memory_bytes(cl.reservoir_replay(10)(rule), described) == 10 * row + 4
    assert cl.memory_bytes(cl.der(10, 0.5)(rule), described) == 10 * (row + 8 * 6) + 4 + 2 * 8
