"""Strengths between conventions, against the penalties themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import continual as cl
from bptoolkit.models import mlp

OURS = cl.Convention()
OTHERS = [cl.Convention(half=False), cl.Convention(summed=True), cl.Convention(half=False, summed=True, batch=8)]


@pytest.mark.parametrize("other", OTHERS)
def test_there_and_back_is_the_same(other):
    there = cl.convert_strength(3.0, OURS, other, rows=128)
    assert there != 3.0
    assert cl.convert_strength(there, other, OURS, rows=128) == pytest.approx(3.0)


def test_sums_means_and_halves_make_one_penalty():
    """½ λ Σ mean F (θ − a)² = λ′ Σ sum F (θ − a)², on random numbers."""
    squares, gap = np.random.default_rng(0).random((20, 7)), np.arange(7.0)
    found = cl.convert_strength(3.0, OURS, cl.Convention(half=False, summed=True), rows=20)
    np.testing.assert_allclose(found * (squares.sum(0) * gap**2).sum(), 0.5 * 3.0 * (squares.mean(0) * gap**2).sum())


def test_squares_of_batch_means_are_smaller_by_the_batch():
    """Labels drawn from the net itself, 600 batches of 16: within 5 % of what the converter says, over all weights."""
    model = mlp(4, 5, 3)
    params, x = model.init(jax.random.key(1)), jax.random.normal(jax.random.key(2), (16, 4))
    logits = jax.vmap(model.apply, (None, 0))(params, x)[0]

    @jax.jit
    def squared(key):
        labels = jax.random.categorical(key, logits)
        score = lambda p: jnp.mean(jax.vmap(lambda x, y: jax.nn.log_softmax(model.apply(p, x)[0])[y])(x, labels))
        batch, rows = (
            jax.grad(score)(params),
            jax.vmap(lambda x, y: jax.grad(lambda p: jax.nn.log_softmax(model.apply(p, x)[0])[y])(params))(x, labels),
        )
        total = lambda tree: sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
        return total(batch), total(rows) / 16

    batch, rows = np.mean(jax.vmap(squared)(jax.random.split(jax.random.key(0), 600)), axis=1)
    factor = cl.convert_strength(1.0, cl.Convention(batch=16), OURS, rows=16)
    assert factor * rows == pytest.approx(batch, rel=0.05)
    assert factor == 1 / 16
    assert cl.convert_strength(1.0, cl.Convention(summed=True, batch=16), OURS, rows=48) == 3 / 16  # of three batches


@pytest.mark.parametrize("batch", [0, 11])
def test_a_batch_beyond_the_rows_is_refused(batch):
    with pytest.raises(ValueError, match=f"batch must be (in 1 … rows = 10|at least 1), got {batch}"):
        cl.convert_strength(1.0, cl.Convention(batch=batch), OURS, rows=10)
