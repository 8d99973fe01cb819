"""What is said of a network around its fixed point, against dense linear algebra and against what then happens."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import (
    Status,
    Stop,
    almeida_pineda,
    anderson,
    implicit,
    one_step,
    picard,
    relaxation,
    solve,
    unrolled,
    value_and_grad,
)
from bptoolkit.fixed_point.diagnose import (
    Range,
    diagnose,
    gradient_check,
    numerical_range,
    residual_history,
    spectral_abscissa,
    spectral_radius,
)

N = 8
TIGHT = Stop(rtol=1e-13)
PLAIN = implicit(picard(), almeida_pineda())
EXACT = implicit(picard(), almeida_pineda(stop=TIGHT), TIGHT)


def loss(args, z):
    """Depends on args in two ways: through the state, and as a readout does."""
    return jnp.sum(z**2) + jnp.sum(args[1] * z)


def affine(args, z):
    return args[0] @ z + args[1]


def tanh_map(args, z):
    """That of the fixture `network`, here so that one program serves several tests."""
    return jnp.tanh(args[0] @ z + args[1])


diagnosed = jax.jit(lambda args: diagnose(tanh_map, args, jnp.zeros_like(args[1]), PLAIN, loss))


def dense(network):
    """z* after 400 plain iterations, and J there."""
    args, f = network
    z = jax.lax.fori_loop(0, 400, lambda _, z: f(args, z), jnp.zeros(N))
    return z, np.asarray(jax.jacobian(partial(f, args))(z))


def test_radius_abscissa_and_range_are_those_of_the_dense_jacobian(network):
    args, f = network
    z, j = dense(network)
    values, part = np.linalg.eigvals(j), np.linalg.eigvalsh((j + j.T) / 2)
    pieces = (spectral_radius, spectral_abscissa, numerical_range)
    found = jax.jit(lambda args, z: tuple(piece(f, args, z) for piece in pieces))(args, z)
    expected = (np.abs(values).max(), values.real.max(), Range(part[0], part[-1]))
    chex.assert_trees_all_close(found, expected, rtol=1e-12)


def test_the_range_of_a_large_map_is_found_from_within():
    """A shear of 100 values, (J + Jᵀ)/2 with eigenvalues cos(kπ/101), by 40 Lanczos vectors: never outside, and
    within 2.6 (ln 100 / 79)² = 0.9 % of the width from either end, though all eigenvalues of J are zero."""
    shear = jnp.eye(100, k=1)
    field = jax.jit(lambda shear: numerical_range(lambda a, z: a @ z, shear, jnp.zeros(100)))(shear)
    end = np.cos(np.pi / 101)
    assert 0.982 * end < field.high <= end + 1e-14
    assert -end - 1e-14 <= field.low < -0.982 * end


MAPS = {  # matrix: (plain iteration settles, continuous relaxation settles)
    "contraction": (0.6 * np.eye(2), True, True),
    "negative": (np.diag([-3.0, 0.5]), False, True),
    "spiral": (np.array([[0.5, -2.0], [2.0, 0.5]]), False, True),
    "unstable": (np.diag([1.2, 0.0]), False, False),
    "slow rotation": (np.array([[0.9, -0.3], [0.3, 0.9]]) * 0.98, True, True),
    "shear": (np.array([[0.5, 50.0], [0.0, 0.5]]), True, True),
}


@pytest.fixture(scope="module")
def compiled():
    """One program for all maps of two units."""
    at = jnp.ones(2)

    def run(matrix, dt):
        step = lambda z: affine((matrix, at), z)
        return solve(step, jnp.array([1.0, -0.5]), relaxation(dt), Stop(rtol=1e-6, max_steps=20_000)).status

    return jax.jit(lambda matrix: diagnose(affine, (matrix, at), jnp.zeros(2), PLAIN)), jax.jit(run)


@pytest.mark.parametrize("name", MAPS)
def test_what_is_said_to_settle_settles(name, compiled):
    """ρ < 1 if and only if plain iteration converges, max Re λ < 1 if and only if some dt does, below the one given."""
    matrix, plain, continuous = MAPS[name]
    measured, run = compiled
    d = measured(jnp.asarray(matrix))
    assert (d.radius < 1, d.abscissa < 1) == (plain, continuous)
    assert (run(matrix, 1.0) == Status.CONVERGED) == plain
    assert (d.dt > 0) == continuous
    if continuous:
        assert run(matrix, 0.95 * d.dt) == Status.CONVERGED
        assert run(matrix, 1.05 * d.dt) != Status.CONVERGED


@pytest.mark.parametrize("name", MAPS)
def test_the_report_says_in_words_what_settles(name, compiled):
    matrix, plain, continuous = MAPS[name]
    report = str(compiled[0](jnp.asarray(matrix)))
    assert f"Plain (Picard) iteration {'settles' if plain else 'does not settle'} here" in report
    assert f"The continuous relaxation {'settles' if continuous else 'does not settle'} here" in report
    assert ("errors may grow" in report) == (name in ("shear", "unstable"))
    assert ("is no fixed point" in report) == (not plain)
    assert "Adjoint" not in report  # no loss was given


def test_a_radius_of_one_is_too_close_to_call(compiled):
    report = str(compiled[0](jnp.array([[0.6, -0.8], [0.8, 0.6]])))
    assert "Plain (Picard) iteration is too close to call here" in report
    assert "The continuous relaxation settles here" in report


def test_a_map_that_is_not_finite_gets_no_verdict(compiled):
    report = str(compiled[0](jnp.full((2, 2), jnp.nan)))
    assert "NONFINITE after 0 steps" in report
    assert "Whether plain (Picard) iteration settles here cannot be said" in report
    assert "does not settle here" not in report


@pytest.mark.parametrize("solver", [picard(), relaxation(0.5), anderson(3)], ids=["picard", "relaxation", "anderson"])
def test_the_history_holds_the_residual_of_each_step(solver, network):
    """The oracle asks `solve` for 0, 1, 2 … steps."""
    args, f = network
    history = jax.jit(lambda args: residual_history(f, args, jnp.zeros(N), solver, steps=6))(args)
    reached = jax.jit(lambda k: solve(partial(f, args), jnp.zeros(N), solver, Stop(rtol=0.0, max_steps=k)).residual)
    chex.assert_trees_all_close(history, jnp.stack([reached(k) for k in range(7)]), rtol=1e-9)


def test_the_history_goes_on_where_solve_would_stop():
    """z ← 2z from 1 moves away by 2^k."""
    history = residual_history(lambda a, z: a * z, jnp.array(2.0), jnp.ones(1), steps=30)
    chex.assert_trees_all_close(history, 2.0 ** jnp.arange(31.0), rtol=1e-14)


def test_an_exact_gradient_passes_both_checks(network):
    args, f = network
    check = jax.jit(lambda args: gradient_check(f, args, jnp.zeros(N), loss, EXACT))(args)
    assert check.settled
    assert check.backward.status == Status.CONVERGED
    assert check.adjoint_residual < 1e-12
    assert check.next_term < 1e-12
    assert check.difference < 1e-7


def true_gradient(args, f, relax):
    gradient = jax.jit(lambda args: value_and_grad(loss, relax)(f, args, jnp.zeros(N))[1])
    return jax.flatten_util.ravel_pytree(gradient(args))[0]


def test_the_bias_of_a_cheap_gradient_is_measured(network):
    """One-step: λ = g, so that the next term is Jᵀg; the difference estimates the true error, ± 9 % (four times)."""
    args, f = network
    relax = implicit(picard(), one_step(), TIGHT)
    z, j = dense(network)
    g = 2 * z + args[1]
    change = lambda push: jax.vjp(lambda a: f(a, z), args)[1](push)[0]
    size = lambda tree: jnp.linalg.norm(jax.flatten_util.ravel_pytree(tree)[0])
    exact, cheap = true_gradient(args, f, EXACT), true_gradient(args, f, relax)

    check = jax.jit(lambda args: gradient_check(f, args, jnp.zeros(N), loss, relax, directions=64))(args)
    chex.assert_trees_all_close(check.adjoint_residual, size(j.T @ g) / size(g), rtol=1e-8)
    chex.assert_trees_all_close(check.next_term, size(change(j.T @ g)) / size(cheap), rtol=1e-8)
    chex.assert_trees_all_close(check.difference, size(cheap - exact) / size(cheap), rtol=4 / 128**0.5)


def test_differences_catch_a_wrong_derivative_that_neumann_cannot(network):
    """Negative control: a map whose own rule halves ∂f/∂b satisfies its adjoint equation perfectly."""
    (w, b), f = network

    @jax.custom_jvp
    def halved(b):
        return b

    halved.defjvp(lambda primals, tangents: (primals[0], tangents[0] / 2))
    wrong = lambda args, z: f((args[0], halved(args[1])), z)
    check = jax.jit(lambda args: gradient_check(wrong, args, jnp.zeros(N), loss, EXACT))((w, b))
    assert check.next_term < 1e-12
    assert check.difference > 0.05


def test_complex_arguments_are_checked_in_both_their_parts():
    """z* = b/(1 − a) over the complex numbers, the state a tree; a conjugate too many is an error of one or so."""
    args = {"a": jnp.array([0.3 + 0.4j, -0.2j]), "b": jnp.array([1.0 - 2.0j, 0.5 + 0.1j])}
    f = lambda args, z: {"s": args["a"] * z["s"] + args["b"]}
    loss = lambda args, z: jnp.sum(jnp.abs(z["s"]) ** 2) + jnp.sum(args["b"].real)
    check = jax.jit(lambda args: gradient_check(f, args, {"s": jnp.zeros(2, jnp.complex128)}, loss, EXACT))(args)
    assert check.adjoint_residual < 1e-12
    assert check.difference < 1e-7


def test_differences_on_networks_that_do_not_settle_are_marked(network):
    """Five unrolled steps: the gradient is exact for them, which differences from another start cannot see."""
    args, f = network
    check = jax.jit(lambda args: gradient_check(f, args, jnp.zeros(N), loss, unrolled(5)))(args)
    assert not check.settled
    assert check.next_term > 1e-3


def test_the_report_of_a_gradient_reads_as_measured(network):
    d = diagnosed(network[0])
    report = str(d)
    assert f"Fixed point of {N} state values: CONVERGED after {d.solution.steps} steps" in report
    assert f"from {N} Ritz values" in report
    assert f"spectral radius max |λ|             {d.radius:.4g} ± " in report
    assert f"Adjoint: CONVERGED after {d.gradient.backward.steps} steps" in report
    assert f"changes by {d.gradient.next_term:.1e} of itself" in report
    assert f"off by {d.gradient.difference:.1e} of itself" in report
    assert "not to be trusted" not in report
    unsettled = d._replace(gradient=d.gradient._replace(settled=jnp.array(False)))
    assert "not to be trusted" in str(unsettled)


def test_a_batch_of_diagnoses_is_each_of_them(network):
    batch = jax.tree.map(lambda x: jnp.stack([x, x / 2]), network[0])
    both = jax.vmap(diagnosed)(batch)
    assert "Diagnoses of (2,) examples" in str(both)
    picked, alone = jax.tree.map(lambda x: x[1], both), diagnosed(jax.tree.map(lambda x: x[1], batch))
    for field in ("radius", "abscissa", "dt", "field", "history"):
        chex.assert_trees_all_close(getattr(picked, field), getattr(alone, field), rtol=1e-9, atol=1e-13)
    assert str(picked).splitlines()[-2:] == str(alone).splitlines()[-2:]


def test_differences_resolve_a_float32_gradient_too(network):
    args = jax.tree.map(lambda x: x.astype(jnp.float32), network[0])
    check = jax.jit(lambda args: gradient_check(tanh_map, args, jnp.zeros(N, jnp.float32), loss, PLAIN))(args)
    assert check.settled
    assert check.difference.dtype == jnp.float32
    assert check.difference < 5e-3


def test_the_defaults_settle_a_scalar_that_plain_iteration_does_not_in_float32():
    """z = tanh(−3z + 1), f' = −2.8: Anderson ends at rounding level, where errors estimated from its steps jump."""
    args = jnp.array([-3.0, 1.0], jnp.float32)
    square = lambda args, z: jnp.square(z)
    check = jax.jit(lambda args: gradient_check(lambda a, z: jnp.tanh(a[0] * z + a[1]), args, args[0] * 0, square))(
        args
    )
    assert check.settled
    assert check.difference < 1e-3


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_diagnosis_lowers_for_every_device(platform):
    shapes = (jax.ShapeDtypeStruct((N, N), jnp.float32), jax.ShapeDtypeStruct((N,), jnp.float32))
    program = jax.jit(lambda *args: jax.tree.leaves(diagnose(affine, args, jnp.zeros(N, jnp.float32), loss=loss)))
    assert jax.export.export(program, platforms=[platform])(*shapes).platforms == (platform,)


def test_no_directions_are_refused(network):
    args, f = network
    with pytest.raises(ValueError, match="directions must be at least 1, got 0"):
        gradient_check(f, args, jnp.zeros(N), loss, directions=0)
