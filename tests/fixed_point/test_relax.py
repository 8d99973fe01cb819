"""Gradients at a fixed point: adjoints against a dense solve, backpropagation through time, and central differences."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import (
    Status,
    Stop,
    adjoints,
    almeida_pineda,
    anderson,
    dense,
    gmres,
    implicit,
    neumann,
    newton_krylov,
    one_step,
    picard,
    solvers,
    unrolled,
    value_and_grad,
)

TIGHT = Stop(rtol=1e-13)
EXACT = {f"almeida_pineda/{name}": almeida_pineda(s, TIGHT) for name, s in solvers.EXAMPLES.items()} | {
    "dense": dense()
}


def loss_of(relax, f):
    """A loss of the settled state that is not symmetric in the units."""
    weights = jnp.arange(1.0, 9.0)
    return lambda args: jnp.sum(weights * relax(f, args, jnp.zeros(8)).value ** 2)


def by_dense_solve(args, z):
    """∂L/∂W and ∂L/∂b of `loss_of`, written out: δ = g'(u) ⊙ (I − Jᵀ)⁻¹ ∂L/∂z."""
    w, b = args
    slope = 1 - jnp.tanh(w @ z + b) ** 2
    adjoint = jnp.linalg.solve((jnp.eye(8) - slope[:, None] * w).T, 2 * jnp.arange(1.0, 9.0) * z)
    delta = slope * adjoint
    return jnp.outer(delta, z), delta


def assert_exact(gradient, args, f):
    """Equal to 300 unrolled steps and to the dense solve, to 1e-10."""
    settled = jax.lax.fori_loop(0, 300, lambda _, z: f(args, z), jnp.zeros(8))
    chex.assert_trees_all_close(gradient, by_dense_solve(args, settled), atol=1e-10)
    chex.assert_trees_all_close(gradient, jax.jit(jax.grad(loss_of(unrolled(300), f)))(args), atol=1e-10)


@pytest.mark.parametrize(("forward", "backward"), [*zip(solvers.EXAMPLES, EXACT, strict=False), ("picard", "dense")])
def test_an_exact_route_gives_one_gradient(forward, backward, network):
    """On weights that are not symmetric; `test_conformance.py` has every route."""
    args, f = network
    relax = implicit(solvers.EXAMPLES[forward], EXACT[backward], TIGHT)
    assert_exact(jax.jit(jax.grad(loss_of(relax, f)))(args), args, f)


def test_the_gradient_needs_no_jit(network):
    args, f = network
    assert_exact(jax.grad(loss_of(implicit(adjoint=almeida_pineda(stop=TIGHT), stop=TIGHT), f))(args), args, f)


def test_the_transposed_network_is_needed(network):
    """Negative control: settling the error through W instead of Wᵀ gives another gradient."""
    args, f = network

    def untransposed(matvec, g, **options):
        jacobian = jax.jacobian(matvec)(g)
        return almeida_pineda(stop=TIGHT)(lambda v: jacobian.T @ v, g)

    gradient = jax.grad(loss_of(implicit(adjoint=untransposed, stop=TIGHT), f))(args)
    exact = jax.grad(loss_of(implicit(adjoint=dense(), stop=TIGHT), f))(args)
    assert jnp.abs(gradient[0] - exact[0]).max() > 0.1


def test_central_differences_agree(network):
    args, f = network
    settle = jax.jit(loss_of(implicit(stop=TIGHT), f))
    gradient = jax.grad(settle)(args)[1]
    h = 1e-5
    moved = lambda e: settle((args[0], args[1] + e))
    differences = jnp.array([(moved(h * e) - moved(-h * e)) / (2 * h) for e in jnp.eye(8)])
    chex.assert_trees_all_close(gradient, differences, atol=1e-8)


def test_second_derivatives_are_those_through_the_steps(network):
    args, f = network
    exact = implicit(picard(), almeida_pineda(stop=TIGHT), TIGHT)
    hessian = lambda relax: jax.jit(jax.hessian(lambda b: loss_of(relax, f)((args[0], b))))(args[1])
    chex.assert_trees_all_close(hessian(exact), hessian(unrolled(300)), atol=1e-9)


def test_backprop_through_time_tends_to_it_at_the_rate_of_the_map():
    """f(z) = az + b: the gradient of z* in b is 1/(1 − a); K unrolled steps miss a^K of it."""
    f = lambda args, z: args[0] * z + args[1]
    args = (jnp.float64(0.7), jnp.float64(0.4))
    grad = lambda relax: jax.grad(lambda a: relax(f, a, jnp.float64(0)).value)(args)[1]
    for steps in (5, 10, 20):
        chex.assert_trees_all_close(1 - grad(unrolled(steps)) * 0.3, 0.7**steps, rtol=1e-9)
    chex.assert_trees_all_close(grad(implicit(adjoint=dense(), stop=TIGHT)), 1 / 0.3, rtol=1e-12)


@pytest.mark.parametrize("terms", [0, 1, 5])
def test_neumann_is_the_sum_of_its_terms(terms, network):
    (w, _), _ = network
    g = jnp.ones(8)
    expected = sum(jnp.linalg.matrix_power(w.T, k) @ g for k in range(terms + 1))
    solution = neumann(terms)(lambda v: w.T @ v, g)
    chex.assert_trees_all_close(solution.value, expected, atol=1e-12)
    chex.assert_trees_all_close(solution.residual, jnp.linalg.norm(expected - w.T @ expected - g), atol=1e-12)
    assert solution.status == Status.MAX_STEPS


@pytest.mark.parametrize("gain", [1.0, 0.9999])
def test_a_series_is_summed_to_its_end_also_where_nothing_shrinks(gain):
    """1 + a + … + a^300 in float32: at a = 1 the residual stands still."""
    found = neumann(300)(lambda v: gain * v, jnp.ones(4, jnp.float32))
    chex.assert_trees_all_close(found.value, jnp.full(4, sum(gain**k for k in range(301)), jnp.float32), rtol=1e-4)
    assert found.steps == 300


def test_a_series_of_a_nilpotent_map_ends_exactly():
    """J moves each unit to the next, twentyfold: ‖Jᵏ‖ grows to 20⁷ before it is 0."""
    j, g = jnp.diag(jnp.full(7, 20.0), 1), jnp.ones(8)
    found = neumann(7)(lambda v: j.T @ v, g)
    chex.assert_trees_all_close(found.value, jnp.linalg.solve(jnp.eye(8) - j.T, g), rtol=1e-12)


def test_one_step_is_neumann_of_zero_terms_and_biased(network):
    args, f = network
    grad = lambda adjoint: jax.grad(loss_of(implicit(adjoint=adjoint, stop=TIGHT), f))(args)[0]
    chex.assert_trees_all_equal(grad(one_step()), grad(neumann(0)))
    assert jnp.abs(grad(one_step()) - grad(dense())).max() > 0.01


def test_one_step_does_not_take_a_small_residual_for_a_small_error():
    """J₀₁ J₁₀ = 0.9 with J₀₁ = 1e-9: the residual of λ = g is 1e-9, where λ is ten times g."""
    j = jnp.array([[0.0, 1e-9], [0.9e9, 0.0]])
    told = one_step()(lambda v: j.T @ v, jnp.array([1.0, 0.0]))
    assert told.residual < 1e-8
    assert told.status == Status.MAX_STEPS


@pytest.mark.parametrize("name", adjoints.EXACT)
def test_a_singular_system_is_reported(name):
    """J = I has no adjoint."""
    solution = adjoints.EXAMPLES[name](lambda v: v, jnp.ones(3))
    assert Status(int(solution.status)) == Status.SINGULAR


@pytest.mark.parametrize(
    ("slope", "status"),
    [(jnp.nan, Status.NONFINITE), (1.5, Status.DIVERGED), (0.9999, Status.MAX_STEPS), (-1.0, Status.CYCLE)],
)
def test_each_way_to_fail_backward_has_its_status(slope, status):
    solution = almeida_pineda(stop=Stop(max_steps=200))(lambda v: slope * v, jnp.arange(3.0))
    assert Status(int(solution.status)) == status


@pytest.mark.parametrize("name", adjoints.EXAMPLES)
def test_a_zero_cotangent_gives_zero(name):
    solution = adjoints.EXAMPLES[name](lambda v: 0.5 * v, jnp.zeros(3))
    chex.assert_trees_all_equal(solution.value, jnp.zeros(3))


def test_a_warm_start_saves_the_backward_steps(network):
    args, f = network
    exact = implicit(picard(), almeida_pineda(stop=TIGHT), TIGHT)
    evaluate = value_and_grad(lambda a, z: jnp.sum(z**2), exact)
    _, gradient, _, cold = evaluate(f, args, jnp.zeros(8))
    _, again, _, warm = evaluate(f, args, jnp.zeros(8), start=cold.value)
    assert 4 * warm.steps < cold.steps
    chex.assert_trees_all_close(again, gradient, atol=1e-11)


def test_value_and_grad_tells_how_both_relaxations_ended(network):
    args, f = network
    relax = implicit(picard(), almeida_pineda(stop=Stop(rtol=1e-6)), Stop(rtol=1e-9))
    value, gradient, forward, backward = jax.jit(
        lambda a: value_and_grad(lambda _, z: jnp.sum(jnp.arange(1.0, 9.0) * z**2), relax)(f, a, jnp.zeros(8))
    )(args)
    chex.assert_trees_all_close(value, loss_of(relax, f)(args), atol=1e-12)
    chex.assert_trees_all_close(gradient, jax.grad(loss_of(relax, f))(args), atol=1e-12)
    assert forward.status == backward.status == Status.CONVERGED
    assert 0 < backward.steps < forward.steps
    w, _ = args
    jacobian = (1 - forward.value**2)[:, None] * w
    g = 2 * jnp.arange(1.0, 9.0) * forward.value
    chex.assert_trees_all_close(backward.value, jnp.linalg.solve(jnp.eye(8) - jacobian.T, g), rtol=1e-5)
    alone = almeida_pineda(stop=Stop(rtol=1e-6))(lambda v: jacobian.T @ v, g)
    told = lambda solution: (solution.residual, solution.rate, solution.error)
    chex.assert_trees_all_close(told(backward), told(alone), rtol=1e-6)


def test_a_backward_relaxation_that_fails_is_told():
    """Three steps are too few for the transposed solve."""
    f = lambda a, z: jnp.tanh(a * z + 0.5)
    relax = implicit(picard(), almeida_pineda(stop=Stop(max_steps=3)))
    *_, forward, backward = value_and_grad(lambda a, z: jnp.sum(z), relax)(f, jnp.float64(1.1), jnp.zeros(3))
    assert forward.status == Status.CONVERGED
    assert (int(backward.status), int(backward.steps)) == (Status.MAX_STEPS, 3)
    assert backward.residual > 1e-3


def test_unrolled_steps_report_that_nothing_was_solved(network):
    args, f = network
    evaluate = value_and_grad(lambda a, z: jnp.sum(z), unrolled(3))
    *_, forward, backward = evaluate(f, args, jnp.zeros(8))
    assert (int(forward.steps), int(forward.status)) == (3, Status.MAX_STEPS)
    assert (int(backward.steps), int(backward.status)) == (3, Status.MAX_STEPS)
    assert backward.residual > 1e-6


def test_a_captured_tracer_gets_its_gradient(network):
    (w, b), _ = network
    settle = lambda w: implicit(stop=TIGHT)(lambda b, z: jnp.tanh(w @ z + b), b, jnp.zeros(8)).value.sum()
    through_time = lambda w: unrolled(300)(lambda b, z: jnp.tanh(w @ z + b), b, jnp.zeros(8)).value.sum()
    expected = jax.grad(through_time)(w)
    for transform in (lambda g: g, jax.jit, lambda g: lambda w: jax.vmap(g)(w[None])[0]):
        chex.assert_trees_all_close(transform(jax.grad(settle))(w), expected, atol=1e-7)


@pytest.mark.parametrize("order", ["vmap_of_grad", "grad_of_vmap"])
def test_batches_by_vmap_on_either_side_of_grad(order, network):
    (w, _), f = network
    drives = jax.random.normal(jax.random.key(1), (5, 8))
    one = lambda b: loss_of(implicit(stop=TIGHT), f)((w, b))
    alone = jax.jit(jax.grad(one))
    expected = jnp.stack([alone(b) for b in drives])
    both = {"vmap_of_grad": jax.vmap(jax.grad(one)), "grad_of_vmap": jax.grad(lambda bs: jax.vmap(one)(bs).sum())}
    batched = jax.jit(both[order])(drives)
    chex.assert_trees_all_close(batched, expected, atol=1e-10)


def test_a_failing_neighbour_changes_no_bit_of_a_gradient(network):
    (w, _), f = network
    grads = jax.jit(jax.vmap(jax.grad(lambda b: loss_of(implicit(), f)((w, b)))))
    drives = jax.random.normal(jax.random.key(1), (5, 8))
    chex.assert_trees_all_equal(grads(drives)[1:], grads(drives.at[0].set(jnp.nan))[1:])


def test_gradients_inside_a_scan_and_under_remat(network):
    args, f = network
    gradient = jax.grad(loss_of(implicit(), f))
    descend = lambda a, _: (jax.tree.map(lambda p, g: p - 0.01 * g, a, gradient(a)), None)
    scanned = jax.lax.scan(descend, args, length=3)[0]
    stepwise = args
    for _ in range(3):
        stepwise = descend(stepwise, None)[0]
    chex.assert_trees_all_close(scanned, stepwise, atol=1e-10)
    chex.assert_trees_all_close(jax.grad(jax.checkpoint(loss_of(implicit(), f)))(args), gradient(args), atol=1e-12)


def test_a_leaf_that_does_not_depend_on_args_is_no_obstacle():
    f = lambda a, z: {"moves": 0.5 * z["moves"] + a, "rests": 0.1 * z["rests"]}
    start = {"moves": jnp.zeros(2), "rests": jnp.zeros(3)}
    settle = lambda a: implicit(adjoint=almeida_pineda(stop=TIGHT))(f, a, start).value["moves"].sum()
    chex.assert_trees_all_close(jax.grad(settle)(jnp.ones(2)), jnp.full(2, 2.0), rtol=1e-9)


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.2)])
def test_gradients_in_narrow_dtypes(dtype, atol, network):
    args, f = network
    narrow = jax.tree.map(lambda x: x.astype(dtype), args)
    settle = lambda relax: lambda a: jnp.sum(relax(f, a, jnp.zeros(8, dtype)).value)
    stop = Stop(rtol=1e-6 if dtype == jnp.float32 else None)
    gradient = jax.grad(settle(implicit(adjoint=almeida_pineda(stop=stop), stop=stop)))(narrow)[1]
    exact = jax.grad(lambda a: jnp.sum(unrolled(300)(f, a, jnp.zeros(8)).value))(args)[1]
    assert gradient.dtype == dtype
    chex.assert_trees_all_close(gradient.astype(jnp.float64), exact, atol=atol)


def test_numbers_of_the_stopping_rule_may_be_traced(network):
    args, f = network
    traces = []

    @jax.jit
    def gradient(stop):
        traces.append(1)
        return jax.grad(lambda a: jnp.sum(implicit()(f, a, jnp.zeros(8), stop=stop).value))(args)

    loose, tight = gradient(Stop(0.1, 0.0, 50)), gradient(Stop(1e-12, 0.0, 500))
    assert len(traces) == 1
    assert jnp.abs(loose[1] - tight[1]).max() > 1e-8


def test_memory_of_a_gradient_does_not_grow_with_the_steps_allowed(network):
    args, f = network

    def scratch(steps):
        stop = Stop(max_steps=steps)
        gradient = jax.grad(loss_of(implicit(picard(), almeida_pineda(stop=stop), stop), f))
        return jax.jit(gradient).lower(args).compile().memory_analysis().temp_size_in_bytes

    assert scratch(10) == scratch(100_000)


def test_bad_input_gets_a_sentence(network):
    args, _ = network
    with pytest.raises(ValueError, match="shapes and dtypes it was given"):
        implicit()(lambda a, z: z[:3], args, jnp.zeros(8))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        unrolled(0)
    with pytest.raises(ValueError, match="terms must be at least 0"):
        neumann(-1)


@pytest.mark.parametrize("part", [implicit, almeida_pineda, lambda solver: unrolled(3, solver)])
def test_a_solver_that_was_not_made_is_refused_where_it_is_given(part):
    with pytest.raises(ValueError, match=r"solver must be a Solver, .* make one, got anderson"):
        part(anderson)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: implicit(adjoint=gmres), r"adjoint must be an Adjoint, as almeida_pineda\(\) .*, got gmres"),
        (lambda: implicit(adjoint=0.5), "adjoint must be an Adjoint, .*, got float"),
        (lambda: newton_krylov(almeida_pineda), "linear must be an Adjoint, .*, got almeida_pineda"),
    ],
)
def test_an_adjoint_that_was_not_made_is_refused_where_it_is_given(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
