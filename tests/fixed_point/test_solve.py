"""What a relaxation returns, and how honestly it ends."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from bptoolkit.fixed_point import (
    Status,
    Stop,
    almeida_pineda,
    anderson,
    broyden,
    chebyshev,
    damped,
    implicit,
    picard,
    relaxation,
    solve,
    solvers,
)

TIGHT = Stop(rtol=1e-12)


def linear(matrix, offset):
    """The affine map z ↦ Mz + c, whose fixed point is (I − M)⁻¹ c."""
    exact = jnp.linalg.solve(jnp.eye(len(offset)) - matrix, offset)
    return lambda z: matrix @ z + offset, exact


@pytest.mark.parametrize("name", solvers.EXAMPLES)
def test_every_solver_reaches_the_same_fixed_point(name, network):
    """The oracle is 400 plain iterations."""
    args, f = network
    expected = jax.lax.fori_loop(0, 400, lambda _, z: f(args, z), jnp.zeros(8))
    solution = solve(lambda z: f(args, z), jnp.zeros(8), solvers.EXAMPLES[name], TIGHT)
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value, expected, atol=1e-11)


@pytest.mark.parametrize("name", solvers.EXAMPLES)
def test_the_residual_belongs_to_the_value_returned(name, network):
    args, f = network
    solution = solve(lambda z: f(args, z), jnp.zeros(8), solvers.EXAMPLES[name], Stop(rtol=1e-3))
    true = jnp.linalg.norm(solution.value - f(args, solution.value))
    chex.assert_trees_all_close(solution.residual, true, rtol=1e-12)


@pytest.mark.parametrize("name", solvers.EXAMPLES)
@pytest.mark.parametrize("rho", [0.3, 0.9, 0.99])
def test_the_tolerance_bounds_the_error_not_the_step(name, rho):
    """On a symmetric map with spectrum in [−ρ, ρ] the true relative error is at most three tolerances."""
    q = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (20, 20)))[0]
    f, exact = linear(q @ jnp.diag(jnp.linspace(-rho, rho, 20)) @ q.T, jnp.ones(20))
    solution = solve(f, jnp.zeros(20), solvers.EXAMPLES[name], Stop(rtol=1e-4, max_steps=20_000))
    assert solution.status == Status.CONVERGED
    assert jnp.linalg.norm(solution.value - exact) <= 3e-4 * jnp.linalg.norm(exact)


def test_a_rule_on_the_residual_alone_would_be_wrong():
    """Negative control for the test above: at ρ = 0.99 the error is about a hundred residuals."""
    f, exact = linear(0.99 * jnp.eye(4), jnp.ones(4))
    solution = solve(f, jnp.zeros(4), picard(), Stop(rtol=1e-4, max_steps=20_000))
    error = jnp.linalg.norm(solution.value - exact)
    assert error > 90 * solution.residual
    chex.assert_trees_all_close(solution.error, error, rtol=1e-6)


def test_damping_is_undone_in_the_estimate():
    """Damping 0.9 makes steps ten times smaller, not errors."""
    f, exact = linear(0.9 * jnp.eye(4), jnp.ones(4))
    solution = solve(f, jnp.zeros(4), damped(0.9), Stop(rtol=1e-3, max_steps=20_000))
    chex.assert_trees_all_close(solution.error, jnp.linalg.norm(solution.value - exact), rtol=1e-6)


@pytest.mark.parametrize("damping", [0.5, 0.9])
def test_a_slow_rotation_between_unequal_axes_is_within_the_tolerance_too(damping):
    """I − J = [[a, −ck], [c/k, a]]: the error of one residual swings by about k², twice a turn of 2π/c time constants.

    A judge that forgets the larger ratio before it comes round again is off by up to ten tolerances here.
    """
    a, c, k = 0.02, 0.06, 5.0
    f, exact = linear(jnp.eye(2) - jnp.array([[a, -c * k], [c / k, a]]), jnp.array([0.3, 0.1]))
    starts = exact + 10.0 ** jnp.linspace(0, 2, 20)[:, None] * jnp.array([1.0, 0.0])  # they end at all phases of a turn
    ended = jax.vmap(lambda z: solve(f, z, damped(damping), Stop(rtol=1e-4, max_steps=20_000)))(starts)
    assert (ended.status == Status.CONVERGED).all()
    assert (jnp.linalg.norm(ended.value - exact, axis=1) <= 3e-4 * jnp.linalg.norm(exact)).all()


def test_the_reported_rate_is_the_contraction():
    f, _ = linear(0.8 * jnp.eye(4), jnp.ones(4))
    chex.assert_trees_all_close(solve(f, jnp.zeros(4)).rate, 0.8, rtol=1e-6)


@pytest.mark.parametrize("every", [1, 3])
def test_recent_steps_weigh_most_in_the_rate_however_often_it_is_judged(every):
    """The residual shrinks by 0.9 three times and then by 1/2 three times: the older ones weigh (3/4)³."""
    f = lambda z: z - jnp.where(z > 1, 0.5 + 0.1 * (z - 1), 0.5 * z)
    start = 1 + 5 * (0.9**-3 - 1)
    ended, older = solve(f, start, stop=Stop(rtol=0.0, max_steps=6), every=every), 0.75**3
    chex.assert_trees_all_close(ended.rate, 0.9**older * 0.5 ** (1 - older), rtol=1e-9)


@pytest.mark.parametrize("depth", [5, 10])
def test_anderson_needs_fewer_steps_on_a_slow_symmetric_map(depth):
    q = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (20, 20)))[0]
    f, _ = linear(q @ jnp.diag(jnp.linspace(-0.95, 0.95, 20)) @ q.T, jnp.ones(20))
    stop = Stop(rtol=1e-6, max_steps=5000)
    steps = {name: solve(f, jnp.zeros(20), s, stop).steps for name, s in [("a", anderson(depth)), ("p", picard())]}
    assert 2 * steps["a"] < steps["p"]


def test_anderson_of_full_depth_solves_a_linear_map_in_its_dimension():
    """It is then a Krylov method: n + 1 steps on n dimensions, here with eigenvalues that make Picard diverge."""
    matrix = jnp.diag(jnp.array([-2.0, 0.3, 1.7, 0.9])) + jnp.triu(jnp.full((4, 4), 0.2), 1)
    f, exact = linear(matrix, jnp.ones(4))
    solution = solve(f, jnp.zeros(4), anderson(5, ridge=0.0), Stop(max_steps=5))
    chex.assert_trees_all_close(solution.value, exact, atol=1e-8)
    assert solve(f, jnp.zeros(4), picard()).status == Status.DIVERGED


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (anderson(depth=1), picard()),
        (damped(0.0), picard()),
        (damped(0.25), relaxation(0.75)),
        (optax.sgd(1.0), picard()),
        (optax.sgd(0.75), damped(0.25)),
    ],
)
def test_two_names_of_one_method_agree(left, right, network):
    args, f = network
    one, two = (solve(lambda z: f(args, z), jnp.zeros(8), s, Stop(rtol=1e-6)) for s in (left, right))
    chex.assert_trees_all_close(one.value, two.value, atol=1e-13)
    assert one.steps == two.steps


def test_continuous_stability_is_not_picard_contraction():
    """λ = −3 is stable in continuous time; Picard diverges, dt < 0.5 settles, dt = 0.6 does not."""
    f, exact = linear(-3.0 * jnp.eye(2), jnp.ones(2))
    assert solve(f, jnp.zeros(2), picard()).status == Status.DIVERGED
    assert solve(f, jnp.zeros(2), relaxation(0.6)).status == Status.DIVERGED
    chex.assert_trees_all_close(solve(f, jnp.zeros(2), relaxation(0.4)).value, exact, rtol=1e-7)


FAILURES = {
    "max_steps": (lambda z: 0.999 * z + 1.0, Stop(max_steps=20), Status.MAX_STEPS),
    "no_steps": (lambda z: 0.5 * z + 1.0, Stop(max_steps=0), Status.MAX_STEPS),
    "diverged": (lambda z: 1.1 * z + 1.0, Stop(), Status.DIVERGED),
    "nan_at_once": (lambda z: z * jnp.nan, Stop(), Status.NONFINITE),
    "nan_later": (lambda z: jnp.where(z > 1.5, jnp.nan, 0.9 * z + 1.0), Stop(), Status.NONFINITE),
    "infinite": (lambda z: z * z * 1e200 + 1e200, Stop(), Status.NONFINITE),
    "cycle": (lambda z: -z + 2.0, Stop(), Status.CYCLE),
    "cycle_of_a_net": (lambda z: jnp.tanh(-3.0 * z + 0.1), Stop(), Status.CYCLE),
    "singular": (lambda z: z + 1.0, Stop(), Status.SINGULAR),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_each_way_to_fail_has_its_status(failure):
    f, stop, expected = FAILURES[failure]
    start = jnp.array([0.1, 0.2, 0.3])
    assert Status(int(solve(f, start, picard(), stop).status)) == expected


def test_tolerances_below_float32_end_as_stalled_and_default_ones_do_not():
    matrix = 0.99 * jnp.linalg.qr(jax.random.normal(jax.random.key(0), (16, 16)))[0].astype(jnp.float32)
    f = lambda z: matrix @ z + jnp.float32(1)
    start = jnp.zeros(16, jnp.float32)
    assert solve(f, start, picard(), Stop(rtol=1e-9, max_steps=100_000)).status == Status.STALLED
    assert solve(f, start, picard(), Stop(max_steps=100_000)).status == Status.CONVERGED


@pytest.mark.parametrize("solver", [anderson(), None], ids=["anderson", "left out"])
def test_a_fixed_point_at_zero_is_reached(solver):
    """The residuals shrink until their squares are no float32 any more; nothing becomes NaN."""
    j = 0.33 * jax.random.normal(jax.random.key(1), (6, 6), jnp.float32)
    settled = implicit(solver)(lambda j, z: jnp.tanh(j @ z), j, jnp.ones(6, jnp.float32))
    assert settled.status in (Status.CONVERGED, Status.STALLED)
    assert jnp.abs(settled.value).max() < 1e-15


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 0.1, 100.0])
def test_anderson_takes_half_precision_of_any_size(dtype, size):
    """z ↦ z/2 + c: squares of the residuals are beyond float16."""
    c = (size * jnp.linspace(0.5, 1, 64)).astype(dtype)
    settled = solve(lambda z: z / 2 + c, jnp.zeros(64, dtype), anderson())
    assert settled.status == Status.CONVERGED
    chex.assert_trees_all_close(settled.value.astype(float), 2 * c.astype(float), rtol=0.03)


def test_small_steps_are_not_taken_for_a_singular_map():
    """I − J is 1/2: at dt = 0.003 a step changes the residual by less than float32 can tell beside z."""
    settled = solve(lambda z: 0.5 * z + 1, jnp.zeros(4, jnp.float32), relaxation(3e-3), Stop(max_steps=20_000))
    assert settled.status == Status.CONVERGED
    chex.assert_trees_all_close(settled.value, jnp.full(4, 2, jnp.float32), rtol=3e-4)


@pytest.mark.parametrize("every", [1, 4])
def test_a_cycle_of_rounding_is_no_cycle(every):
    """It is at rounding after 40 steps or so, and 64 steps later it has STALLED, however often it is judged."""
    settled = solve(jnp.cos, jnp.ones(3, jnp.float32), stop=Stop(rtol=1e-9), every=every)
    assert settled.status == Status.STALLED
    assert 64 < settled.steps < 150


@pytest.mark.parametrize("solver", [picard(), relaxation(), chebyshev(), anderson(), broyden()])
def test_a_state_may_be_a_number(solver):
    assert solve(jnp.cos, 1.0, solver).value == pytest.approx(0.7390851, rel=1e-5)


def test_a_map_that_is_already_settled_takes_no_step():
    solution = solve(lambda z: z, jnp.ones(3))
    assert (int(solution.steps), int(solution.status)) == (0, Status.CONVERGED)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64, jnp.complex64])
def test_every_inexact_dtype_is_kept(dtype):
    half, one = jnp.asarray(0.5, dtype), jnp.asarray(1, dtype)
    solution = solve(lambda z: half * z + one, jnp.zeros(4, dtype))
    assert solution.status == Status.CONVERGED
    assert solution.value.dtype == dtype
    assert solution.residual.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    chex.assert_trees_all_close(jnp.abs(solution.value).astype(jnp.float32), jnp.full(4, 2.0, jnp.float32), rtol=0.05)


def test_a_state_may_be_any_pytree(network):
    args, f = network
    split = lambda z: {"a": z[:3], "b": (z[3:],)}
    join = lambda s: jnp.concatenate([s["a"], s["b"][0]])
    for solver in solvers.EXAMPLES.values():
        tree = solve(lambda s: split(f(args, join(s))), split(jnp.zeros(8)), solver, TIGHT)
        flat = solve(lambda z: f(args, z), jnp.zeros(8), solver, TIGHT)
        chex.assert_trees_all_close(join(tree.value), flat.value, atol=1e-12)


@pytest.mark.parametrize("name", solvers.EXAMPLES)
def test_a_failing_neighbour_changes_no_bit(name):
    """At equal shapes: the others' values are the same bits whatever one lane does, and its own status tells."""
    gains = {"nan": jnp.nan, "slow": 0.9999, "divergent": 1.5, "well": 0.5}
    lanes = lambda kind: jnp.array([0.3, gains[kind], -0.8, 0.9])
    run = jax.jit(jax.vmap(lambda gain: solve(lambda z: gain * z + 1.0, jnp.zeros(3), solvers.EXAMPLES[name])))
    keep = jnp.array([0, 2, 3])
    healthy = run(lanes("well"))
    ended = {kind: run(lanes(kind)) for kind in gains}
    for sick in ended.values():
        chex.assert_trees_all_equal((sick.value[keep], sick.steps[keep]), (healthy.value[keep], healthy.steps[keep]))
    assert ended["nan"].status[1] == Status.NONFINITE
    if name != "anderson":  # which settles both others
        assert ended["slow"].status[1] == Status.MAX_STEPS
        assert ended["divergent"].status[1] == Status.DIVERGED


def test_changing_a_number_does_not_compile_again(network):
    args, f = network
    traces = []

    @jax.jit
    def run(stop, damping):
        traces.append(1)
        return solve(lambda z: f(args, z), jnp.zeros(8), damped(damping), stop)

    run(Stop(1e-3, 0.0, 10), 0.1), run(Stop(1e-6, 1e-9, 500), 0.7)
    assert len(traces) == 1


def test_memory_does_not_grow_with_the_steps_allowed(network):
    args, f = network
    peak = lambda n: (
        jax.jit(lambda z: solve(lambda z: f(args, z), z, anderson(), Stop(max_steps=n)))
        .lower(jnp.zeros(8)).compile().memory_analysis().temp_size_in_bytes
    )  # fmt: skip
    assert peak(10) == peak(100_000)


SETTLED = ("picard", "anderson", "relaxation, automatic", None)


@pytest.mark.parametrize("name", SETTLED)
def test_a_state_that_is_settled_already_is_found_so_at_once(name):
    """To float32's rounding: 64 rows, again and again from where they ended, in a few steps and then in one at most."""
    w = 0.9 * jnp.linalg.qr(jax.random.normal(jax.random.key(0), (12, 12)))[0].astype(jnp.float32)
    inputs = jax.random.normal(jax.random.key(1), (64, 12), jnp.float32)
    relax = implicit(None if name is None else solvers.EXAMPLES[name])
    settled = jax.jit(jax.vmap(lambda x, z: relax(lambda x, z: jnp.tanh(w @ z + x), x, z)._replace(memory=None)))
    one, steps = settled(inputs, jnp.zeros_like(inputs)), []
    for _ in range(20):
        one = settled(inputs, one.value)
        assert (one.status == Status.CONVERGED).all()
        steps.append(int(one.steps.max()))
    assert steps[0] <= 4
    assert steps[-1] <= 1
    assert (one.error <= 1e-4 * jnp.linalg.norm(one.value, axis=1)).all()


@pytest.mark.parametrize("pull", [1e-7, 1e-6, 3e-6])
def test_a_start_that_hardly_moves_is_not_taken_for_settled(pull):
    """z ↦ z − pull (z − 5) from z = 1: a residual at rounding, and an error of four times the state."""
    z0 = jnp.ones(6, jnp.float32)
    solution = solve(lambda z: z - jnp.float32(pull) * (z - 5), z0, stop=Stop(max_steps=200))
    assert solution.residual <= 128 * jnp.finfo(jnp.float32).eps * jnp.linalg.norm(solution.value)
    assert solution.status != Status.CONVERGED


def test_half_precision_tells_cycles_and_divergence_as_single_does():
    """A residual as large as the state is none of rounding, however few digits there are."""
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        turned = solve(lambda z: -z + 10, jnp.full(2, 4, dtype))
        assert (turned.status, turned.steps) == (Status.CYCLE, 8)
    grown = [solve(lambda z: 2 * z + 1, jnp.ones(2, dtype)).status for dtype in (jnp.float32, jnp.bfloat16)]
    assert grown == [Status.DIVERGED] * 2


def test_no_error_has_the_adjoint_state_zero_from_any_start():
    """λ = Jᵀλ + 0."""
    solution = almeida_pineda()(lambda v: 0.9 * v, jnp.zeros(12), start=jnp.ones(12))
    assert (solution.status, solution.steps) == (Status.CONVERGED, 0)
    assert (solution.value == 0).all()
