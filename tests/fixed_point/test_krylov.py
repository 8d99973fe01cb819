"""Krylov adjoints against dense solves, their laws, and how they fail; Newton's method on top of them."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import (
    Status,
    Stop,
    bicgstab,
    cg_normal,
    gmres,
    implicit,
    krylov,
    neumann,
    newton_krylov,
    picard,
    solve,
)

TIGHT = Stop(rtol=1e-12)
METHODS = {"gmres": gmres, "bicgstab": bicgstab, "cg_normal": cg_normal}


def system(rho, n=24, seed=2, kind="random", dtype=float):
    """A matrix of spectral radius ρ, a right side, and λ by elimination."""
    a_key, g_key = jax.random.split(jax.random.key(seed))
    a = jax.random.normal(a_key, (n, n), dtype)
    a = {"random": a, "symmetric": (a + a.T) / 2, "rotation": (a - a.T) / 2}[kind]
    a = a * (rho / jnp.abs(jnp.linalg.eigvals(a)).max()).astype(a.dtype)
    g = jax.random.normal(g_key, (n,), dtype)
    return a, g, jnp.linalg.solve(jnp.eye(n, dtype=a.dtype) - a, g)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["random", "symmetric", "rotation"])
@pytest.mark.parametrize("rho", [0.5, 0.99])
def test_it_solves_what_elimination_solves(name, kind, rho):
    a, g, exact = system(rho, kind=kind)
    solution = METHODS[name](stop=TIGHT)(lambda v: a @ v, g)
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_it_solves_complex_systems(name):
    a, g, exact = system(0.9, n=12, dtype=complex)
    chex.assert_trees_all_close(METHODS[name](stop=TIGHT)(lambda v: a @ v, g).value, exact, atol=1e-9)


@pytest.mark.parametrize("name", ["gmres", "cg_normal"])
def test_it_needs_no_contraction(name):
    """ρ = 3, where plain relaxation diverges."""
    a, g, exact = system(3.0)
    assert METHODS[name](stop=Stop(rtol=1e-10)).__call__(lambda v: a @ v, g).status == Status.CONVERGED
    method = gmres(40, TIGHT) if name == "gmres" else cg_normal(TIGHT)
    chex.assert_trees_all_close(method(lambda v: a @ v, g).value, exact, atol=1e-8)


def test_gmres_ends_in_n_products_with_the_smallest_residual_of_the_krylov_space():
    """The oracle is least squares over g, Ag, …; where r ⟂ (I − A) r plain conjugate residuals would break down."""
    quarter_turn = jnp.eye(2) - jnp.array([[0.0, -1.0], [1.0, 0.0]])  # I − A turns by 90°
    for a, g in [(quarter_turn, jnp.array([1.0, 0.0])), system(0.99, n=8)[:2]]:
        n = len(g)
        m = jnp.eye(n) - a
        residuals = []
        for k in range(1, n + 1):
            space = jnp.stack([jnp.linalg.matrix_power(m, i) @ g for i in range(1, k + 1)], axis=1)
            best = jnp.linalg.norm(g - space @ jnp.linalg.lstsq(space, g)[0])
            solution = gmres(stop=Stop(rtol=0.0, max_steps=k))(lambda v, a=a: a @ v, g)
            chex.assert_trees_all_close(solution.residual, best, atol=1e-7)
            residuals.append(float(best))
        assert residuals == sorted(residuals, reverse=True)
        assert residuals[-1] < 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_residual_steps_and_status_are_true(name):
    a, g, _ = system(0.9)
    calls = Stop(rtol=0.0, max_steps=6)
    solution = METHODS[name](stop=calls)(lambda v: a @ v, g)
    assert solution.status == Status.MAX_STEPS
    assert solution.steps == 6
    chex.assert_trees_all_close(solution.residual, jnp.linalg.norm(solution.value - a @ solution.value - g), rtol=1e-9)


def test_conjugate_gradients_reach_the_smallest_residual_of_their_krylov_space():
    """The oracle is least squares over s, MᵀM s, …, with M = I − A and s = Mᵀg; the minimum over more cannot rise."""
    a, g, _ = system(0.9, n=8)
    m = jnp.eye(8) - a
    ended = jax.jit(lambda k: cg_normal(Stop(rtol=0.0, max_steps=k))(lambda v: a @ v, g).residual)
    residuals = [float(ended(2 * k)) for k in range(1, 6)]
    for k, residual in enumerate(residuals, 1):
        space = jnp.stack([jnp.linalg.matrix_power(m.T @ m, i) @ m.T @ g for i in range(k)], axis=1)
        best = jnp.linalg.norm(g - m @ space @ jnp.linalg.lstsq(m @ space, g)[0])
        chex.assert_trees_all_close(residual, best, rtol=1e-6)
    assert residuals == sorted(residuals, reverse=True)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("started", [False, True])
def test_no_more_products_are_made_than_allowed(name, started):
    """Each budget from none to seven; the start's own residual is one product that is made in any case."""
    a, g, _ = system(0.9)
    start = jnp.ones_like(g) if started else None
    ended = jax.jit(lambda k: METHODS[name](stop=Stop(rtol=0.0, max_steps=k))(lambda v: a @ v, g, start=start))
    for allowed in range(8):
        solution = ended(allowed)
        assert solution.status == Status.MAX_STEPS
        assert int(solution.steps) <= max(allowed, started)
        assert int(solution.steps) > allowed - (1 if name == "gmres" else 2)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("name", ["gmres", "bicgstab"])
def test_steps_are_the_products_counted_where_they_are_made(name, started):
    """One more is made at the end, which certifies the result; the residual of a start counts."""
    a, g, _ = system(0.9)
    calls = []

    def product(v):
        jax.debug.callback(lambda: calls.append(1))
        return a @ v

    solution = jax.block_until_ready(METHODS[name]()(product, g, start=jnp.ones_like(g) if started else None))
    jax.effects_barrier()
    assert len(calls) == int(solution.steps) + 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rho", [0.9, 0.99])
def test_the_tolerance_bounds_the_error(name, rho):
    """At most 1 in 100 misses it, none of the others is off by more than three tolerances, or than it says itself."""
    rtol, n = 1e-4, 32
    rows = [system(rho, n, seed) for seed in range(60)]
    a, g, exact = (jnp.stack(parts) for parts in zip(*rows, strict=True))
    method = METHODS[name](stop=Stop(rtol=rtol))
    told = jax.jit(jax.vmap(lambda a, g: method(lambda v: a @ v, g)))(a, g)
    assert jnp.mean(told.status == Status.CONVERGED) >= 0.99
    found = told.status == Status.CONVERGED
    size, wrong = jnp.linalg.norm(exact, axis=1), jnp.linalg.norm(told.value - exact, axis=1)
    assert jnp.all(jnp.where(found, wrong / size, 0) <= 3 * rtol)
    assert jnp.all(jnp.where(found, wrong <= told.error, True))
    assert jnp.all(jnp.where(found, told.error / jnp.linalg.norm(told.value, axis=1), 0) <= 3 * rtol)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("dtype", "scale"), [(jnp.float32, 1e-25), (jnp.float32, 1e25), (jnp.float16, 1e-4)])
def test_the_size_of_g_does_not_matter(name, dtype, scale):
    """λ(c g) = c λ(g), where squares of c g leave the range of the dtype and halves of it lose their digits."""
    a, g, _ = system(0.9)
    method = METHODS[name]()
    a, small = a.astype(dtype), (g * scale).astype(dtype)
    solution = method(lambda v: a @ v, small)
    exact = jnp.linalg.solve(jnp.eye(len(g)) - a.astype(float), small.astype(float))
    assert solution.status == Status.CONVERGED
    wrong = jnp.linalg.norm(solution.value.astype(float) - exact) / jnp.linalg.norm(exact)
    assert wrong <= {jnp.float32: 3e-4, jnp.float16: 0.15}[dtype]  # three times what the dtype can honour


@pytest.mark.parametrize("name", METHODS)
def test_an_absolute_tolerance_and_what_is_told_are_in_the_units_of_g(name):
    """λ(c g) to within c ε is c times λ(g) to within ε, after as many products; a power of two rounds nothing."""
    a, g, _ = system(0.9)
    method = lambda c: METHODS[name](stop=Stop(rtol=0.0, atol=1e-3 * c))
    one, other = (jax.jit(lambda c: method(c)(lambda v: a @ v, c * g))(c) for c in (1.0, 2.0**10))
    assert one.status == other.status == Status.CONVERGED
    assert one.steps == other.steps
    scaled = lambda told: (told.value, told.residual, told.error)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: 2.0**10 * x, scaled(one)), scaled(other))


@pytest.mark.parametrize("name", METHODS)
def test_failures_have_their_status(name):
    method = METHODS[name](stop=Stop(max_steps=400))
    assert method(lambda v: v, jnp.ones(3)).status == Status.SINGULAR
    assert method(lambda v: v * jnp.nan, jnp.ones(3)).status == Status.NONFINITE
    nothing = method(lambda v: 0.5 * v, jnp.zeros(3))
    assert nothing.status == Status.CONVERGED
    assert nothing.steps == 0
    chex.assert_trees_all_equal(nothing.value, jnp.zeros(3))
    chex.assert_trees_all_equal(method(lambda v: 0.5 * v, jnp.zeros(3), start=jnp.ones(3)).value, jnp.zeros(3))
    assert method(lambda v: v * jnp.nan, jnp.zeros(3)).status == Status.NONFINITE


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["random", "symmetric"])
def test_a_singular_system_converges_only_where_it_has_a_solution(name, kind):
    """I − A has rank n − 1; a λ that grows along its null space is not handed out as a solution."""
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(4), (24, 24)))[0]
    skew = basis if kind == "symmetric" else basis + 0.3 * jnp.eye(24)
    values = jnp.linspace(-0.8, 0.8, 24).at[0].set(1.0)
    a = skew @ jnp.diag(values) @ jnp.linalg.inv(skew)
    g = jax.random.normal(jax.random.key(5), (24,))
    method = METHODS[name](stop=Stop(rtol=1e-4))
    ill, well = method(lambda v: a @ v, g), method(lambda v: a @ v, g - a @ g)
    assert ill.status in (Status.SINGULAR, Status.STALLED)
    assert ill.residual <= jnp.linalg.norm(g) * (1 + 1e-12)
    assert well.status == Status.CONVERGED


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_that_fails_leaves_the_others_alone(name):
    a, g, _ = system(0.9)
    settle = jax.jit(jax.vmap(lambda gain: METHODS[name]()(lambda v: gain * (a @ v), g)))
    well, ill = settle(jnp.array([0.5, 1.0, 0.9])), settle(jnp.array([0.5, jnp.nan, 0.9]))
    keep = jnp.array([0, 2])
    assert ill.status[1] == Status.NONFINITE
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[keep], well), jax.tree.map(lambda x: x[keep], ill))


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_a_batch_does_not_matter(name):
    rows = [system(rho, seed=seed) for seed, rho in enumerate([0.3, 0.9, 0.6, 0.99])]
    a, g, _ = (jnp.stack(parts) for parts in zip(*rows, strict=True))
    settle = jax.jit(jax.vmap(lambda a, g: METHODS[name]()(lambda v: a @ v, g)))
    order = jnp.array([2, 0, 3, 1])
    here, there = settle(a, g), settle(a[order], g[order])
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[order], here), there, rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_a_start_at_the_solution_needs_one_product(name):
    a, g, exact = system(0.9)
    near = METHODS[name](stop=Stop(rtol=1e-3))(lambda v: a @ v, g, start=exact * (1 + 1e-9))
    far = METHODS[name](stop=Stop(rtol=1e-3))(lambda v: a @ v, g)
    assert near.status == Status.CONVERGED
    assert 2 * int(near.steps) < int(far.steps)


@pytest.mark.parametrize("name", METHODS)
def test_it_is_differentiated_twice(name, network):
    """z = W z + p sin t settles at (I − W)⁻¹ p sin t, so ‖z‖² has the second derivative 2 cos 2t ‖(I − W)⁻¹ p‖²."""
    (w, _), _ = network
    push = jnp.linspace(0.1, 0.8, 8)
    relax = implicit(picard(), METHODS[name](stop=TIGHT), TIGHT)
    value = lambda t: jnp.sum(relax(lambda t, z: w @ z + push * jnp.sin(t), t, jnp.zeros(8)).value ** 2)
    length = jnp.sum(jnp.linalg.solve(jnp.eye(8) - w, push) ** 2)
    second = jax.jit(jax.grad(jax.grad(value)))(0.3)
    chex.assert_trees_all_close(second, 2 * length * jnp.cos(0.6), rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_its_own_products_are_in_full_precision(name):
    """TF32 or bfloat16 would cost orthogonality: each product in the program of a map without any asks for more."""
    text = str(jax.make_jaxpr(lambda g: METHODS[name]()(lambda v: 0.5 * v, g))(jnp.ones(3)))
    assert text.count("dot_general[") > 0
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")


def test_half_precision_states_are_solved_in_single():
    a, g, exact = system(0.9)
    low = a.astype(jnp.bfloat16)
    solution = gmres()(lambda v: low @ v, g.astype(jnp.bfloat16))
    assert solution.value.dtype == jnp.bfloat16
    assert solution.residual.dtype == jnp.float32
    assert jnp.linalg.norm(solution.value.astype(float) - exact) < 0.1 * jnp.linalg.norm(exact)


NEUMANN = {
    0.99: {1: 0.77, 5: 0.66, 10: 0.46, 20: 0.34, 50: 0.15, 100: 0.063},
    0.9: {1: 0.71, 5: 0.37, 10: 0.2, 20: 0.048, 50: 1.2e-3, 100: 3e-6},
}


def anchors(rho):
    """Sixteen float32 matrices of n = 64: normal entries, scaled to ρ; a normal g.  The anchors do not say of which."""
    rows = [system(rho, n=64, seed=seed) for seed in range(16)]
    a, g, exact = (jnp.stack(parts) for parts in zip(*rows, strict=True))
    return a.astype(jnp.float32), g.astype(jnp.float32), exact


def errors(adjoint, rho):
    a, g, exact = anchors(rho)
    value = jax.jit(jax.vmap(lambda a, g: adjoint(lambda v: a @ v, g).value))(a, g)
    return jnp.linalg.norm(value.astype(float) - exact, axis=1) / jnp.linalg.norm(exact, axis=1)


@pytest.mark.parametrize(("rho", "terms"), [(rho, terms) for rho in NEUMANN for terms in NEUMANN[rho]])
def test_published_errors_of_truncated_series_are_reproduced(rho, terms):
    """The median of 16 is within a factor of 2.5; single matrices, such as the published one, spread further."""
    median = float(jnp.median(errors(neumann(terms), rho)))
    assert 1 / 2.5 < median / NEUMANN[rho][terms] < 2.5


@pytest.mark.parametrize("rho", NEUMANN)
@pytest.mark.parametrize("name", METHODS)
def test_krylov_methods_are_as_exact_as_published_where_series_are_not(name, rho):
    """The published ones are 3.7e-7 to 4e-5."""
    assert jnp.max(errors(METHODS[name](stop=Stop(rtol=1e-6)), rho)) < 5e-6


def test_newton_needs_few_steps_where_plain_iteration_needs_hundreds(network):
    (w, b), f = network
    hard = (w * 1.5, b)
    expected = solve(lambda z: f(hard, z), jnp.zeros(8), picard(), Stop(rtol=1e-13, max_steps=5000))
    newton = solve(lambda z: f(hard, z), jnp.zeros(8), newton_krylov(), Stop(rtol=1e-10))
    assert newton.status == Status.CONVERGED
    assert 4 * int(newton.steps) < int(expected.steps)
    chex.assert_trees_all_close(newton.value, expected.value, atol=1e-9)


def test_newton_settles_what_does_not_contract():
    f = lambda z: -3 * z + jnp.sin(z) + 1
    solution = solve(f, jnp.zeros(4), newton_krylov(), Stop(rtol=1e-10))
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value, f(solution.value), atol=1e-9)


def test_memory_of_nothing_is_refused():
    with pytest.raises(ValueError, match="memory must be at least 1, got 0"):
        gmres(0)


def test_every_method_is_in_the_examples():
    assert set(METHODS) == set(krylov.EXAMPLES)
