"""Training on one data set: every regime learns, and full batch is gradient descent as one would write it in NumPy."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import data, learning
from bptoolkit.fixed_point import Status, Stop, almeida_pineda, implicit, picard
from bptoolkit.learning.fit import Progress, _point, train
from bptoolkit.learning.learner import bare_learner, rows_of
from bptoolkit.models import equilibrium, mlp, rate_cell
from bptoolkit.types import Dataset, Info, Rows, Settling

MODEL = mlp(4, 6, 3)
RATE, MOMENTUM = 0.5, 0.9


@pytest.fixture(scope="module")
def clouds():
    return data.gaussian_classes(jax.random.key(5), classes=3, rows=8, features=4, spread=0.5)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def descend(rows: Rows, params, steps: int, momentum: float):
    """Δw(t) = −ε ∂E/∂w + α Δw(t − 1) for a ReLU net of two layers, in NumPy; the parameters and the losses."""
    x, t = np.asarray(rows.x), np.eye(3)[np.asarray(rows.y)]
    w = [np.array(p[name]) for p in params for name in ("w", "b")]
    moved, losses = [np.zeros_like(one) for one in w], []
    for _ in range(steps):
        h = np.maximum(x @ w[0] + w[1], 0)
        p = softmax(h @ w[2] + w[3])
        losses.append(-np.log((p * t).sum(1)).mean())
        delta = (p - t) / len(x)
        below = (delta @ w[2].T) * (h > 0)
        grads = [x.T @ below, below.sum(0), h.T @ delta, delta.sum(0)]
        moved = [-RATE * g + momentum * m for g, m in zip(grads, moved, strict=True)]
        w = [one + m for one, m in zip(w, moved, strict=True)]
    return ({"w": w[0], "b": w[1]}, {"w": w[2], "b": w[3]}), losses


def mean_loss_of(model, params, rows: Rows) -> float:
    logits = np.asarray(jax.vmap(lambda x: model.apply(params, x)[0])(rows.x))
    return -np.log(softmax(logits)[np.arange(len(logits)), np.asarray(rows.y)]).mean()


@pytest.mark.parametrize("momentum", [None, MOMENTUM], ids=["plain", "momentum of 1986"])
def test_full_batch_is_gradient_descent_by_hand(clouds, momentum):
    """The whole set in an order of its own every step: equal to rounding."""
    params = MODEL.init(jax.random.key(1))
    learner, optimizer = learning.backprop(MODEL), optax.sgd(RATE, momentum)
    fitted = learning.fit(learner, clouds, optimizer, jax.random.key(2), steps=12, batch=None, params=params)
    by_hand, losses = descend(clouds.train, params, 12, momentum or 0.0)
    chex.assert_trees_all_close(fitted.params, by_hand, atol=1e-12)
    np.testing.assert_allclose(fitted.curves.loss, losses, rtol=1e-12)


def test_momentum_changes_the_path(clouds):
    params = MODEL.init(jax.random.key(1))
    plain, fast = (descend(clouds.train, params, 3, m)[0][0]["w"] for m in (0.0, MOMENTUM))
    assert np.abs(plain - fast).max() > 1e-3


@pytest.mark.parametrize(
    "model", [MODEL, equilibrium(rate_cell(4, 6, 3), implicit(picard(), almeida_pineda()))], ids=["static", "recurrent"]
)
@pytest.mark.parametrize(
    ("batch", "replacement"),
    [(1, False), (6, False), (6, True), (None, False)],
    ids=["online", "mini", "drawn", "full"],
)
def test_every_regime_lowers_the_loss(clouds, key, model, batch, replacement):
    """The mean over the whole set, before and after 60 updates."""
    params = model.init(jax.random.key(1))
    fitted = learning.fit(
        learning.backprop(model),
        clouds,
        optax.sgd(0.2),
        key,
        steps=60,
        batch=batch,
        replacement=replacement,
        params=params,
    )
    before, after = (mean_loss_of(model, p, clouds.train) for p in (params, fitted.params))
    assert after < 0.6 * before
    assert fitted.curves.loss.shape == (60,)


def test_one_online_epoch_is_one_update_after_every_sample(clouds):
    """Each epoch shows every row once, and Δw = −ε x ⊗ (p − t) follows; a learner that reports the index of its row as
    its loss, and does not move, tells the order."""
    seen = bare_learner(
        MODEL, lambda memory, params, batch, key: (jax.tree.map(jnp.zeros_like, params), told(batch), memory)
    )
    told = lambda batch: Info(loss=batch.index[0].astype(batch.x.dtype))
    fitted = learning.fit(seen, clouds, optax.sgd(0.1), jax.random.key(2), steps=48, batch=1)
    order = np.asarray(fitted.curves.loss).astype(int)
    np.testing.assert_array_equal(np.sort(order[:24]), np.arange(24))
    np.testing.assert_array_equal(np.sort(order[24:]), np.arange(24))
    assert (order[:24] != order[24:]).any()

    linear = mlp(4, 3)
    params = linear.init(jax.random.key(1))
    online = learning.fit(
        learning.backprop(linear), clouds, optax.sgd(RATE), jax.random.key(2), steps=48, batch=1, params=params
    )
    w, b = np.array(params[0]["w"]), np.array(params[0]["b"])
    for row in order:
        x, y = np.asarray(clouds.train.x[row]), int(clouds.train.y[row])
        error = softmax(x @ w + b) - np.eye(3)[y]
        w, b = w - RATE * np.outer(x, error), b - RATE * error
    chex.assert_trees_all_close(online.params, ({"w": w, "b": b},), atol=1e-12)


def test_the_key_decides_weights_and_order(clouds):
    run = lambda seed: learning.fit(
        learning.backprop(MODEL), clouds, optax.sgd(0.1), jax.random.key(seed), steps=3, batch=4
    )
    one, again, other = run(0), run(0), run(1)
    chex.assert_trees_all_equal(one, again)
    assert np.abs(one.params[0]["w"] - other.params[0]["w"]).max() > 1e-2


def test_curves_tell_of_settling(clouds, key):
    """Static: NaN.  Recurrent with all its steps: nothing unconverged; with 2 of them: everything, forward."""
    run = lambda model: (
        learning.fit(learning.backprop(model), clouds, optax.sgd(0.1), jax.random.clone(key), steps=4, batch=4).curves
    )
    static = run(MODEL)
    assert np.isnan(static.settling_steps).all()
    assert np.isnan(static.backward_unconverged).all()
    cell = rate_cell(4, 12, 3)
    settled = run(equilibrium(cell, implicit(stop=Stop(rtol=1e-6))))
    assert (np.asarray(settled.unconverged) == 0).all()
    assert (np.asarray(settled.settling_steps) > 2).all()
    assert (np.asarray(settled.backward_steps) > 1).all()
    short = run(equilibrium(cell, implicit(stop=Stop(rtol=1e-6, max_steps=2))))
    assert (np.asarray(short.unconverged) == 1).all()
    assert (np.asarray(short.settling_steps) == 2).all()


def test_settlings_are_counted_over_the_rows_that_the_rule_saw_and_that_have_weight():
    """Three rows in place of a batch of two: 3 and 9 steps, of which the second failed; the last has no weight."""
    status = jnp.array([Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED])
    settling = Settling(jnp.array([3, 9, 100]), jnp.ones(3), jnp.ones(3), status)
    batch = rows_of(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32), 3, 1.0)
    point = _point(Info(loss=jnp.ones(()), forward=settling, weight=jnp.array([0.1, 1.7, 0.0])), batch)
    assert (point.settling_steps, point.unconverged) == (6, 0.5)
    assert np.isnan(point.backward_steps)


def test_a_stage_cut_in_two_is_the_stage(clouds):
    """Steps 0 … 9 at once, or 0 … 3 and 4 … 9 from where those ended: bit-identical."""
    learner, optimizer = learning.backprop(MODEL), optax.sgd(0.1, MOMENTUM)
    params = MODEL.init(jax.random.key(1))
    start = Progress(params, optimizer.init(params), ())
    rows = rows_of(clouds.train.x, clouds.train.y, 3, 1.0)

    def draw(step, key):
        place = jax.random.randint(jax.random.fold_in(key, step), (4,), 0, 24)
        return jax.tree.map(lambda leaf: leaf[place], rows)

    @partial(jax.jit, static_argnums=2)
    def make(progress, first, steps):
        return train(learner, optimizer, draw, progress, jax.random.key(2), steps, first)

    whole, curves = make(start, jnp.int32(0), 10)
    half, early = make(start, jnp.int32(0), 4)
    rest, late = make(half, jnp.int32(4), 6)
    chex.assert_trees_all_equal(whole, rest)
    np.testing.assert_array_equal(curves.loss, np.concatenate([early.loss, late.loss]))


def test_pixels_are_divided_by_the_scale(clouds, key):
    """uint8 pixels with scale 255 train as the same numbers stored as floats do."""
    pixels = data.as_pixels(clouds)
    floats = Dataset(*(Rows(part.x.astype(float) / 255.0, part.y) for part in (pixels.train, pixels.test)), 3)
    run = lambda d: (
        learning.fit(learning.backprop(MODEL), d, optax.sgd(0.1), jax.random.clone(key), steps=5, batch=4).params
    )
    chex.assert_trees_all_close(run(pixels), run(floats), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"model": mlp(4, 2)}, "needs a model with 3 outputs, got logits of shape \\(2,\\)"),
        ({"model": mlp(5, 3)}, "cannot read examples of shape \\(4,\\)"),
        ({"label": 3}, "class numbers 0 … 2, got 3"),
        ({"pixel": np.nan}, "train.x must be finite"),
        ({"vectors": True}, "fit needs class numbers in train.y, got shape \\(24, 3\\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_is_refused_with_a_sentence(clouds, key, change, sentence):
    train_rows, test_rows = clouds.train, clouds.test
    if "label" in change:
        train_rows = train_rows._replace(y=train_rows.y.at[0].set(change["label"]))
    if "pixel" in change:
        train_rows = train_rows._replace(x=train_rows.x.at[0, 0].set(change["pixel"]))
    if "vectors" in change:
        train_rows, test_rows = (rows._replace(y=jnp.eye(3)[rows.y]) for rows in (train_rows, test_rows))
    learner = learning.backprop(change.get("model", MODEL))
    budget = {"steps": 2, "batch": 4} | {name: change[name] for name in ("steps", "batch") if name in change}
    with pytest.raises(ValueError, match=sentence):
        learning.fit(learner, clouds._replace(train=train_rows, test=test_rows), optax.sgd(0.1), key, **budget)


def test_an_optimiser_that_goes_by_the_loss_is_told_it(clouds, key):
    losses = learning.fit(learning.backprop(MODEL), clouds, optax.polyak_sgd(), key, steps=60, batch=None).curves.loss
    assert losses[-1] < 0.5 * losses[0]


def test_what_fit_cannot_do_is_refused(clouds, key):
    with (
        jax.numpy_dtype_promotion("standard"),  # optax's line search needs it
        pytest.raises(ValueError, match=r"asks for more.*value_fn.*\n.*without a line search"),
    ):
        learning.fit(learning.backprop(MODEL), clouds, optax.lbfgs(), key, steps=2)
    with pytest.raises(ValueError, match=r"fit trains a learner, got Model. Write fit\(backprop\(model\), …\)"):
        learning.fit(MODEL, clouds, optax.sgd(0.1), key, steps=2)
    for optimizer, got in ((1e-3, "0.001"), (optax.adam, "adam")):
        with pytest.raises(ValueError, match=f"optimizer must be one of optax, .*, got {got}"):
            learning.fit(learning.backprop(MODEL), clouds, optimizer, key, steps=2)
