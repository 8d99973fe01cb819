"""Generators: the auto-encoder's loss in closed cases, replay of what was never stored, and one model a class."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.continual.cost import flops_of_prediction
from bptoolkit.continual.vae import vae
from bptoolkit.models import mlp

D, Z = 3, 2
GENERATOR = vae(4, (5,), 2, "gaussian")


def linear(slope, spread):
    """No hidden layer: μ = A x, σ constant, x̂ = B z + c, with numbers of our own."""
    net = vae(D, (), Z, "gaussian")
    rng = np.random.default_rng(0)
    a, b, c = slope * rng.normal(size=(D, Z)), rng.normal(size=(Z, D)), rng.normal(size=D)
    encoder = {"w": np.concatenate([a, np.zeros((D, Z))], 1), "b": np.concatenate([np.zeros(Z), np.log(spread) * 2])}
    params = {"encoder": (encoder,), "decoder": ({"w": b, "b": c},)}
    return net, jax.tree.map(jnp.asarray, params), (a, b, c)


def test_the_decoder_has_the_layers_of_the_encoder_in_reverse(key):
    params = vae(6, (5, 4), 2).init(key)
    shapes = {part: [layer["w"].shape for layer in layers] for part, layers in params.items()}
    assert shapes == {"encoder": [(6, 5), (5, 4), (4, 2 * 2)], "decoder": [(2, 4), (4, 5), (5, 6)]}


def test_the_loss_is_the_negative_elbo_in_closed_form():
    """Gaussian and linear: E ½‖x − Bz − c‖² = ½(‖x − Bμ − c‖² + Σ σ_i² ‖B_i‖²), and the KL by its definition.

    The mean over 20,000 draws is within 5 of its standard errors.
    """
    spread = np.array([0.5, 1.5])
    net, params, (a, b, c) = linear(1.0, spread)
    x = np.array([0.3, -1.0, 0.7])
    losses = jax.jit(jax.vmap(net.loss, (None, None, 0)))(
        params, jnp.asarray(x), jax.random.normal(jax.random.key(0), (20_000, Z))
    )
    mean = x @ a
    miss = (np.sum((x - mean @ b - c) ** 2) + np.sum(spread**2 * np.sum(b**2, axis=1))) / 2
    divergence = sum(-np.log(s) + (s**2 + m**2) / 2 - 0.5 for s, m in zip(spread, mean, strict=True))
    assert abs(float(losses.mean()) - (miss + divergence) / D) < 5 * float(losses.std()) / np.sqrt(20_000)
    assert float(losses.std()) > 0.1


def test_importance_samples_find_the_likelihood_of_a_linear_model():
    """x = Bz + c + noise is normal with covariance BᵀB + I.  With q the true posterior every sample has it exactly;
    with a wrong q the mean of many does, and one sample does not."""
    spread = np.array([0.6, 0.7])
    net, params, (_, b, c) = linear(0.3, spread)
    x = np.array([0.3, -1.0, 0.7])
    covariance = b.T @ b + np.eye(D)
    # the constant (d/2) log 2π is left out
    exact = -(np.linalg.slogdet(covariance)[1] + (x - c) @ np.linalg.solve(covariance, x - c)) / 2
    noise = jax.random.normal(jax.random.key(1), (40_000, Z))
    estimate = jax.jit(net.log_likelihood)
    assert estimate(params, jnp.asarray(x), noise) == pytest.approx(exact, abs=0.05)
    assert abs(float(estimate(params, jnp.asarray(x), noise[:1])) - exact) > 0.1


def test_bernoulli_is_the_cross_entropy_of_pixels():
    """With z = 0 for sure (σ → 0, μ = 0): BCE of σ(c), plus what the KL of so narrow a q is."""
    net = vae(D, (), Z)
    c = jnp.array([0.2, -1.0, 3.0])
    encoder = {"w": jnp.zeros((D, 2 * Z)), "b": jnp.concatenate([jnp.zeros(Z), jnp.full(Z, -30.0)])}
    params = {"encoder": (encoder,), "decoder": ({"w": jnp.zeros((Z, D)), "b": c},)}
    x, p = np.array([0.0, 0.4, 1.0]), 1 / (1 + np.exp(-np.asarray(c)))
    crossed = -np.sum(x * np.log(p) + (1 - x) * np.log(1 - p))
    divergence = Z * (np.exp(-30.0) - 1 + 30) / 2
    assert net.loss(params, jnp.asarray(x), jnp.ones(Z)) == pytest.approx((crossed + divergence) / D)
    np.testing.assert_allclose(net.sample(params, jax.random.key(1)), p)


def dreaming(per_task, scenario, after_tasks, rows_of_task, done=2):
    """One gradient of generative replay after so many of three tasks, and the rows that reach the rule.

    Net and generator are others by then than when the last task ended.
    """
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 6, 4, 4), 2, scenario)
    seen = []
    rule = learning.backprop(mlp(4, 5, stream.outputs))

    def gradient(memory, params, batch, key):
        seen.append(batch)
        return rule.gradient(memory, params, batch, key)

    learner = cl.generative_replay(
        3, hidden=(5,), latent=2, likelihood="gaussian", per_task=per_task, optimizer=optax.sgd(0.1)
    )(rule._replace(gradient=gradient))
    _, memory, indices = after_tasks(stream, learner, done)
    params, memory = (
        jax.tree.map(jnp.negative, memory.old_net),
        memory._replace(generator=GENERATOR.init(jax.random.key(9))),
    )
    batch = rows_of_task(stream, indices, 2, jnp.arange(4, dtype=jnp.int32))
    both = jax.jit(lambda *given: (learner.gradient(*given), seen[-1]))
    (_, _, after), rows = both(memory, params, batch, jax.random.key(5))
    return rule, params, memory, after, batch, rows


def test_generated_rows_have_the_old_nets_labels_and_two_thirds_of_the_weight(after_tasks, rows_of_task):
    rule, params, memory, after, batch, rows = dreaming(False, "class", after_tasks, rows_of_task)
    np.testing.assert_array_equal(rows.x[:4], batch.x)
    assert rows.x.shape[0] == 4 + 3
    keys = jax.random.split(jax.random.split(jax.random.key(5), 3)[1], 3)
    dreamt = jax.vmap(GENERATOR.sample, (None, 0))(memory.old_generator, keys)
    np.testing.assert_allclose(rows.x[4:], dreamt, atol=1e-12)
    logits = jax.vmap(lambda x: rule.model.apply(memory.old_net, x)[0])(rows.x[4:])
    np.testing.assert_array_equal(rows.target[4:].argmax(1), logits.argmax(1))
    by_now = jax.vmap(lambda x: rule.model.apply(params, x)[0])(rows.x[4:])
    assert (by_now.argmax(1) != logits.argmax(1)).any()
    np.testing.assert_allclose(rows.weight, [1 / 12] * 4 + [2 / 9] * 3)
    chex.assert_trees_all_equal(after.old_generator, memory.old_generator)


def test_the_generator_makes_an_update_on_the_same_rows_in_the_same_weights(after_tasks, rows_of_task):
    """Gradient descent at rate 0.1 on Σ w L, by `jax.grad`."""
    *_, memory, after, _, rows = dreaming(False, "class", after_tasks, rows_of_task)
    noise = jax.random.normal(jax.random.split(jax.random.key(5), 3)[2], (7, 2))
    loss = lambda net: jnp.sum(rows.weight * jax.vmap(GENERATOR.loss, (None, 0, 0))(net, rows.x, noise))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, memory.generator, jax.grad(loss)(memory.generator))
    chex.assert_trees_all_close(after.generator, expected, atol=1e-12)


def test_generated_rows_have_no_weight_as_of_a_task_to_come(after_tasks, rows_of_task):
    """One of two heads is known, and half of the weight is its rows'."""
    rows = dreaming(None, "task", after_tasks, rows_of_task, done=1)[-1]
    np.testing.assert_allclose(rows.weight, [1 / 8] * 4 + [1 / 6] * 3 + [0] * 3)


def test_where_tasks_are_told_each_generated_row_is_labelled_among_each_tasks_outputs(after_tasks, rows_of_task):
    *_, memory, _, _, rows = dreaming(True, "task", after_tasks, rows_of_task)
    assert rows.x.shape[0] == 4 + 2 * 3
    np.testing.assert_array_equal(rows.x[4:7], rows.x[7:])
    for head in range(2):
        own = slice(4 + 3 * head, 7 + 3 * head)
        np.testing.assert_array_equal(rows.active[own], np.tile(memory.active[head], (3, 1)))
        assert memory.active[head][rows.target[own].argmax(1)].all()
    np.testing.assert_allclose(rows.weight[4:].sum(), 2 / 3)


def test_the_stream_says_whether_tasks_are_told(after_tasks, rows_of_task):
    """Left out, rows are of the task whose outputs they are labelled among; False is refused where the task is told."""
    *_, rows = dreaming(None, "task", after_tasks, rows_of_task)
    assert rows.task.tolist() == [2] * 4 + [0] * 3 + [1] * 3
    assert dreaming(None, "class", after_tasks, rows_of_task)[-1].x.shape[0] == 4 + 3
    with pytest.raises(ValueError, match="got per_task=False"):
        dreaming(False, "task", after_tasks, rows_of_task)


def test_generated_rows_pass_the_gates_of_their_own_task(after_tasks, rows_of_task):
    """The old net's labels of a head are those of its task's gates, of which the current task's are others."""
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 6, 4, 4), 2, "task")
    seen = []
    rule = learning.backprop(mlp(4, 8, stream.outputs))
    gated = cl.xdg(0.5)(rule)

    def gradient(memory, params, batch, key):
        seen.append(batch)
        return gated.gradient(memory, params, batch, key)

    dream = cl.generative_replay(30, hidden=(5,), latent=2, likelihood="gaussian", optimizer=optax.sgd(0.1))
    learner = dream(gated._replace(gradient=gradient))
    params, memory, indices = after_tasks(stream, learner, 2)
    batch = rows_of_task(stream, indices, 2, jnp.arange(4, dtype=jnp.int32))
    _, rows = jax.jit(lambda *given: (learner.gradient(*given), seen[-1]))(memory, params, batch, jax.random.key(5))
    for head in range(2):
        own = jax.tree.map(lambda leaf, head=head: leaf[4 + 30 * head : 34 + 30 * head], rows)
        logits, _ = gated.predict(memory.inner, memory.old_net, own)
        expected = jnp.argmax(jnp.where(own.active, logits, -jnp.inf), axis=1)
        np.testing.assert_array_equal(own.target.argmax(1), expected)
        other, _ = gated.predict(memory.inner, memory.old_net, own._replace(task=jnp.full_like(own.task, 2)))
        assert (jnp.argmax(jnp.where(own.active, other, -jnp.inf), axis=1) != expected).any()


@pytest.mark.slow
def test_generative_replay_forgets_less_than_naive_training():
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 6, 10, 4, spread=0.3), 2)
    rule = learning.backprop(mlp(4, 16, 6))
    dream = cl.generative_replay(
        20, hidden=(32,), latent=4, likelihood="gaussian", optimizer=optax.sgd(0.3, momentum=0.9)
    )(rule)
    run = lambda learner: cl.run(
        cl.Experiment(stream, learner, optax.sgd(0.2), steps=300, batch=10), jax.random.key(0), seeds=2
    )
    lost, lost_naive = cl.forgetting(run(dream)), cl.forgetting(run(rule))
    assert (lost < lost_naive).all()
    assert lost.mean() < lost_naive.mean() - 0.1  # measured: 0.19


def classifier():
    return cl.generative_classifier(4, 6, hidden=(8,), latent=2, samples=8, likelihood="gaussian")


def test_only_the_classes_of_a_batch_learn(clouds_by_task, rows_of_task):
    """The gradient of each is that of its own rows' weighted mean; the others stay bit-identical under any momentum.

    Of two classes in the batch the rows of one have no weight.
    """
    learner, optimizer = classifier(), optax.sgd(0.1, momentum=0.9)
    indices = jax.jit(clouds_by_task.draw)(jax.random.key(0))
    last = indices.train.count[0] - 1
    batch = rows_of_task(clouds_by_task, indices, 0, jnp.stack([jnp.int32(0), jnp.int32(1), last - 1, last]))
    batch = batch._replace(weight=jnp.array([1.0, 3, 0, 0]))
    params = learner.model.init(jax.random.key(1))
    there, other = (set(np.asarray(batch.target.argmax(1))[rows].tolist()) for rows in (slice(0, 2), slice(2, 4)))
    assert len(there) == len(other) == 1
    assert there != other

    @jax.jit
    def step(params, key):
        grads, info, _ = learner.gradient((), params, batch, key)
        updates, state = optimizer.update(grads, jax.tree.map(jnp.ones_like, optimizer.init(params)))
        after, _, _ = learner.after_step((), params, optax.apply_updates(params, updates), state, batch, key)
        return grads, after, info.loss

    grads, after, loss = step(params, jax.random.key(2))
    for c in range(6):
        moved = max(
            float(jnp.abs(a[c] - b[c]).max()) for a, b in zip(*map(jax.tree.leaves, (params, after)), strict=True)
        )
        assert (moved > 0) == (c in there)

    net = vae(4, (8,), 2, "gaussian")
    c = min(there)
    noise = jax.random.normal(jax.random.key(2), (4, 2))
    mean = lambda one: (net.loss(one, batch.x[0], noise[0]) + 3 * net.loss(one, batch.x[1], noise[1])) / 4
    value, expected = jax.jit(jax.value_and_grad(mean))(jax.tree.map(lambda leaf: leaf[c], params))
    np.testing.assert_allclose(loss, value, rtol=1e-12)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[c], grads), expected, atol=1e-10)


@pytest.mark.slow
def test_a_generative_classifier_forgets_nothing():
    """Row by row through the runner, one class a task: what was learned stays, but for what new classes take away."""
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 6, 10, 4, spread=0.3), 1)
    experiment = cl.Experiment(
        stream, classifier(), optax.sgd(0.1, momentum=0.9), steps=150, batch=10, reset_optimizer=True
    )
    result = cl.run(experiment, jax.random.key(0), seeds=1)
    assert cl.average_accuracy(result)[0] > 0.9


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: vae(3, (), 2, "poisson"), "likelihood must be"),
        (lambda: cl.generative_replay(0), "rows must be at least 1"),
        (lambda: cl.generative_classifier(4, 6, samples=0), "samples must be at least 1"),
    ],
)
def test_bad_numbers_are_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


def test_importance_samples_are_another_for_each_class_and_row_and_the_same_again():
    """Three equal auto-encoders: with one noise for all, their likelihoods would be equal."""
    model = cl.generative_classifier(4, 3, hidden=(5,), latent=2, samples=3).model
    params = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 3), model.init(jax.random.key(0)))
    x = jnp.array([[0.1, 0.9, 0.4, 0.0], [0.9, 0.1, 0.4, 0.0]])
    first, again = (jax.vmap(model.apply, (None, 0))(params, x)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(set(np.asarray(first[0]).tolist())) == 3
    assert not np.allclose(first[0] - first[0, 0], first[1] - first[1, 0])


def test_a_prediction_costs_what_all_classes_and_samples_do():
    """Twice the classes, twice the operations; a sample more costs the same wherever it is added.  By hand, a product
    and a sum for each weight: at least 2 · weights of the encoder, and of the decoder for each sample."""

    def flops(classes, samples):
        model = cl.generative_classifier(D, classes, hidden=(7,), latent=Z, samples=samples).model
        params = model.init(jax.random.key(0))
        found = flops_of_prediction(model, params, jnp.ones(D), np.zeros(1))[0]
        size = lambda part: sum(leaf[0].size for leaf in jax.tree.leaves(params[part]) if leaf.ndim == 3)
        assert 2 * classes * (size("encoder") + samples * size("decoder")) <= found
        return found

    found = {(c, s): flops(c, s) for c, s in ((2, 10), (4, 10), (4, 20), (4, 40))}
    assert found[4, 10] == pytest.approx(2 * found[2, 10], rel=0.01)
    assert found[4, 40] - found[4, 20] == pytest.approx(2 * (found[4, 20] - found[4, 10]), rel=0.01)
