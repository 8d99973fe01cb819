"""Backpropagation through time: all of it, the last of it, and all of it in less memory."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import (
    BiasedRelaxation,
    Status,
    anderson,
    implicit,
    neumann,
    one_step,
    picard,
    relaxation,
    unrolled,
    value_and_grad,
)
from bptoolkit.fixed_point.unrolled import BIASED, EXAMPLES

WEIGHTS = jnp.arange(1.0, 9.0)
SOLVERS = {"picard": picard(), "anderson": anderson(3), "euler": relaxation(0.5)}


def gradient(relax, f, args, z0=None):
    start = jnp.zeros(8) if z0 is None else z0
    return jax.jit(jax.grad(lambda a: jnp.sum(WEIGHTS * relax(f, a, start).value ** 2)))(args)


def by_hand(args, z0, steps, last):
    """z ← tanh(W z + b) in a Python loop, with a stop where the truncation begins."""
    for k in range(steps):
        z0 = jax.lax.stop_gradient(z0) if k == steps - last else z0
        z0 = jnp.tanh(args[0] @ z0 + args[1])
    return jnp.sum(WEIGHTS * z0**2)


@pytest.mark.parametrize("last", [1, 2, 6, 7])
def test_truncation_is_a_stopped_gradient_before_the_last_steps(last, network):
    args, f = network
    expected = jax.grad(by_hand)(args, jnp.zeros(8), 7, last)
    chex.assert_trees_all_close(gradient(unrolled(7, truncate=last), f, args), expected, atol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_truncating_nothing_is_the_whole_gradient(name, network):
    args, f = network
    whole, cut = unrolled(9, SOLVERS[name]), unrolled(9, SOLVERS[name], truncate=9)
    chex.assert_trees_all_equal(gradient(cut, f, args), gradient(whole, f, args))


@pytest.mark.parametrize("name", SOLVERS)
def test_truncation_changes_the_gradient_and_no_value(name, network):
    args, f = network
    whole, cut = unrolled(9, SOLVERS[name]), unrolled(9, SOLVERS[name], truncate=2)
    one, two = (jax.jit(lambda a, r=relax: r(f, a, jnp.zeros(8)))(args) for relax in (whole, cut))
    chex.assert_trees_all_close(one, two, atol=1e-13)
    assert jnp.abs(gradient(whole, f, args)[0] - gradient(cut, f, args)[0]).max() > 1e-3


@pytest.mark.parametrize("last", [1, 3, 8])
def test_truncated_at_a_fixed_point_it_is_the_neumann_sum_of_one_term_less(last, network):
    args, f = network
    settled = jax.lax.fori_loop(0, 400, lambda _, z: f(args, z), jnp.zeros(8))
    by_series = gradient(implicit(picard(), neumann(last - 1)), f, args, settled)
    chex.assert_trees_all_close(gradient(unrolled(20, truncate=last), f, args, settled), by_series, atol=1e-12)
    other = gradient(implicit(picard(), neumann(last)), f, args, settled)
    assert jnp.abs(other[0] - by_series[0]).max() > 1e-6  # the control: one term more is another gradient


def test_through_one_step_it_is_the_one_step_gradient(network):
    args, f = network
    by_adjoint = gradient(implicit(picard(), one_step()), f, args)
    chex.assert_trees_all_close(gradient(unrolled(400, truncate=1), f, args), by_adjoint, atol=1e-7)


def test_the_truncated_error_falls_at_the_rate_of_the_map():
    """f(z) = az + b: the gradient in b is 1/(1 − a), of which k steps miss a^k."""
    f = lambda args, z: args[0] * z + args[1]
    for last in (5, 10, 20):
        grad = jax.grad(lambda a, k=last: unrolled(200, truncate=k)(f, a, jnp.float64(0)).value)
        chex.assert_trees_all_close(1 - grad((jnp.float64(0.7), jnp.float64(0.4)))[1] * 0.3, 0.7**last, rtol=1e-9)


def test_a_truncated_gradient_reaches_what_f_closes_over(network):
    args, f = network
    closed = lambda a: jnp.sum(WEIGHTS * unrolled(9, truncate=3)(lambda _, z: f(a, z), None, jnp.zeros(8)).value ** 2)
    chex.assert_trees_all_close(jax.grad(closed)(args), gradient(unrolled(9, truncate=3), f, args), atol=1e-13)


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [(True, "picard"), (1, "picard"), (4, "picard"), (30, "picard"), (4, "anderson"), (4, "euler")],
)
def test_a_checkpointed_gradient_is_the_plain_one(checkpoint, name, network):
    """11 steps are two segments of four and one of three; 30 is longer than all."""
    args, f = network
    plain = gradient(unrolled(11, SOLVERS[name]), f, args)
    chex.assert_trees_all_close(
        gradient(unrolled(11, SOLVERS[name], checkpoint=checkpoint), f, args), plain, atol=1e-13
    )


def test_checkpoints_and_truncation_go_together(network):
    args, f = network
    plain = gradient(unrolled(20, truncate=7), f, args)
    chex.assert_trees_all_close(gradient(unrolled(20, truncate=7, checkpoint=True), f, args), plain, atol=1e-13)


@pytest.mark.parametrize("name", EXAMPLES)
def test_batches_are_their_examples(name, network):
    (w, _), f = network
    drives = jax.random.normal(jax.random.key(1), (3, 8))
    loss = lambda b: jnp.sum(WEIGHTS * EXAMPLES[name](f, (w, b), jnp.zeros(8)).value ** 2)
    alone = jax.jit(jax.grad(loss))
    single = jnp.stack([alone(b) for b in drives])
    chex.assert_trees_all_close(jax.jit(jax.vmap(jax.grad(loss)))(drives), single, atol=1e-12)


def test_second_derivatives_of_checkpoints_are_the_plain_ones(network):
    (w, b), f = network
    loss = lambda relax: lambda b: jnp.sum(WEIGHTS * relax(f, (w, b), jnp.zeros(8)).value ** 2)
    plain, checkpointed = (jax.jit(jax.hessian(loss(unrolled(9, checkpoint=c))))(b) for c in (False, True))
    chex.assert_trees_all_close(checkpointed, plain, atol=1e-12)
    assert jnp.abs(plain - jnp.diag(jnp.diag(plain))).max() > 0.1


def test_a_biased_relaxation_says_so_by_its_type_and_no_other_does():
    assert {name for name, relax in EXAMPLES.items() if isinstance(relax, BiasedRelaxation)} == set(BIASED)
    assert not isinstance(unrolled(5, truncate=5), BiasedRelaxation)


def test_the_backward_report_counts_the_steps_that_were_differentiated(network):
    args, f = network
    evaluate = value_and_grad(lambda a, z: jnp.sum(z), unrolled(9, truncate=4))
    *_, forward, backward = evaluate(f, args, jnp.zeros(8))
    assert (int(forward.steps), int(backward.steps)) == (9, 4)
    assert backward.status == Status.MAX_STEPS
    w = (1 - forward.value**2)[:, None] * args[0]
    assert jnp.linalg.norm(backward.value - jnp.linalg.solve(jnp.eye(8) - w.T, jnp.ones(8))) > 1e-3


def temporary(steps, **options):
    """Bytes of scratch memory of the gradient through so many steps of 1000 units."""
    f = lambda a, z: jnp.tanh(a[0] * z + a[1])
    loss = lambda a: jnp.sum(unrolled(steps, **options)(f, a, jnp.zeros(1000)).value ** 2)
    args = jnp.full(1000, 0.5), jnp.ones(1000)
    return jax.jit(jax.grad(loss)).lower(args).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_steps_or_with_their_root_or_not_at_all():
    """Sixteen times the steps: at least 12 times the memory, at most 5 times where checkpointed, the same truncated."""
    grown = lambda **options: temporary(1024, **options) / temporary(64, **options)
    assert grown() > 12
    assert grown(checkpoint=True) < 5
    assert grown(truncate=8) < 1.2
    assert 4 * temporary(1024, checkpoint=True) < temporary(1024)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"truncate": 0}, "truncate must be at least 1, got 0. Leave it out"),
        ({"truncate": 6}, "truncate must be in 1 … steps = 5, got 6"),
        ({"checkpoint": 0}, "checkpoint must be at least 1, got 0"),
    ],
)
def test_bad_input_gets_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        unrolled(5, **options)


def test_anderson_long_after_it_has_settled_has_the_gradient_at_the_fixed_point(network):
    """Weights that are made of rounding carry no derivative; through them the gradient would be noise, or NaN."""
    args, f = network
    expected = gradient(implicit(), f, args)
    for steps in (50, 150):
        chex.assert_trees_all_close(gradient(unrolled(steps, anderson()), f, args), expected, rtol=1e-5, atol=1e-8)


def test_what_has_settled_counts_as_settled_ever_after():
    w = 0.3 * jax.random.normal(jax.random.key(0), (20, 20), jnp.float32)
    b = jax.random.normal(jax.random.key(1), (200, 20), jnp.float32)
    settle = lambda b: unrolled(50)(lambda b, z: jnp.tanh(w @ z / 3 + b), b, jnp.zeros(20, jnp.float32))
    settled = jax.vmap(settle)(b)
    assert (settled.status == Status.CONVERGED).all()
    assert jnp.isfinite(settled.error).all()


def test_a_number_may_be_settled_and_no_stop_be_said():
    f = lambda a, z: a * jnp.cos(z)
    for relax in (unrolled(40), implicit()):
        value, grad, *_ = value_and_grad(lambda a, z: z, relax)(f, 0.9, 1.0, stop=None)
        z = jax.lax.fori_loop(0, 200, lambda _, z: 0.9 * jnp.cos(z), 1.0)
        assert float(value) == pytest.approx(float(z), rel=1e-5)
        assert float(grad) == pytest.approx(float(jnp.cos(z) / (1 + 0.9 * jnp.sin(z))), rel=1e-4)
