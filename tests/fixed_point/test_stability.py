"""Spectra from products alone, step lengths that settle, and weights that keep a network stable."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads
from scipy.optimize import linear_sum_assignment

from bptoolkit.fixed_point import Status, Stop, picard, relaxation, solve
from bptoolkit.fixed_point import stability as stable

N = 6
RNG = np.random.default_rng(0)
DRAWN = RNG.normal(size=(N, N))
ROTATION = np.array([[0.0, -0.9], [0.9, 0.0]])
MATRICES = {
    "random": DRAWN,
    "symmetric": DRAWN + DRAWN.T,
    "rotations": np.kron(np.eye(3), ROTATION),  # each eigenvalue three times: the Krylov space closes at once
    "identity": 0.7 * np.eye(N),
    "zero": np.zeros((N, N)),
    "cyclic": np.roll(np.eye(N), 1, axis=0),  # an unshifted QR iteration never moves on it
    "graded": np.diag([1e-12, 1e-6, 1.0, 1.0, -5.0, 1e5]),
}
entries = arrays(np.float64, (N, N), elements=st.floats(-3, 3, width=32))
relaxed = settings(max_examples=40, deadline=None, derandomize=True)


def linear(matrix, z):
    return matrix @ z


spectrum = jax.jit(lambda matrix: stable.ritz(linear, matrix, jnp.zeros(len(matrix)), size=N))
step_length = jax.jit(lambda matrix, top=1.0: stable.automatic_dt(linear, matrix, jnp.zeros(len(matrix)), largest=top))


def apart(a, b):
    """The largest distance between two sets of eigenvalues, best paired."""
    distance = np.abs(np.asarray(a)[:, None] - np.asarray(b)[None, :])
    return distance[linear_sum_assignment(distance)].max()


def symmetric_map(low, high, n=60):
    """A symmetric matrix with evenly spread eigenvalues."""
    q = np.linalg.qr(RNG.normal(size=(n, n)))[0]
    return jnp.asarray(q @ np.diag(np.linspace(low, high, n)) @ q.T)


@pytest.mark.parametrize("name", MATRICES)
def test_as_many_krylov_vectors_as_values_give_every_eigenvalue(name):
    """The oracle is LAPACK's dense eigenvalues."""
    matrix = MATRICES[name]
    found = spectrum(jnp.asarray(matrix)).values
    assert apart(found, np.linalg.eigvals(matrix)) <= 1e-13 * N * max(np.linalg.norm(matrix), 1.0)


@given(matrix=entries)
@relaxed
def test_every_value_is_an_eigenvalue_of_a_matrix_next_door(matrix):
    """σ_min(M − θI) is the distance to one that has θ exactly; this holds for defective matrices as well."""
    found = np.asarray(spectrum(jnp.asarray(matrix)).values)
    size = np.linalg.norm(matrix)
    for value in found:
        assert np.linalg.svd(matrix - value * np.eye(N), compute_uv=False)[-1] <= 1e-13 * size
    np.testing.assert_allclose(found.sum(), np.trace(matrix), atol=1e-12 * max(size, 1.0))


def test_residuals_bound_the_error_of_a_normal_map():
    """With 20 vectors for 60 values, each Ritz value has an eigenvalue within its residual, and the outermost are
    exact: Chebyshev's bound leaves 1e-3 of the width there."""
    matrix = symmetric_map(-0.9, 0.5)
    found = jax.jit(lambda matrix: stable.ritz(linear, matrix, jnp.zeros(60), size=20))(matrix)
    exact = np.linalg.eigvalsh(np.asarray(matrix))
    nearest = np.abs(np.asarray(found.values)[:, None] - exact).min(axis=1)
    assert (nearest <= found.residuals + 1e-14).all()
    assert found.residuals.max() > 1e-2  # not all have converged
    np.testing.assert_allclose([found.values.real.min(), found.values.real.max()], [-0.9, 0.5], atol=1e-3 * 1.4)


def test_residuals_are_those_of_the_ritz_vectors():
    """The oracle forms Arnoldi's relation densely: ‖(J − θ) Qᵀy‖ for eigenvectors y of H by LAPACK."""
    matrix = jnp.asarray(RNG.normal(size=(20, 20)))
    found = jax.jit(lambda matrix: stable.ritz(linear, matrix, jnp.zeros(20), size=7, key=jax.random.key(3)))(matrix)
    start = jax.random.normal(jax.random.split(jax.random.key(3))[0], (20,))
    krylov = np.stack([np.linalg.matrix_power(np.asarray(matrix), k) @ np.asarray(start) for k in range(7)], axis=1)
    q = np.linalg.qr(krylov)[0]
    values, y = np.linalg.eig(q.T @ np.asarray(matrix) @ q)
    assert apart(found.values, values) <= 1e-9  # a power basis is ill-conditioned
    expected = np.linalg.norm(np.asarray(matrix) @ (q @ y) - (q @ y) * values, axis=0)
    np.testing.assert_allclose(np.sort(found.residuals), np.sort(expected), rtol=1e-7)


def test_a_state_may_be_any_tree_of_any_dtype():
    """A complex number is two real ones: z ↦ cz has the eigenvalues c and its conjugate."""
    c = 0.3 + 0.4j
    f = lambda c, z: {"a": c * z["a"], "b": jnp.float32(-0.7) * z["b"]}
    state = {"a": jnp.ones(2, jnp.complex128), "b": jnp.ones((1, 2), jnp.float32)}
    found = jax.jit(partial(stable.ritz, f))(jnp.asarray(c), state)
    assert apart(found.values, [c, c.conjugate()] * 2 + [-0.7] * 2) <= 1e-7


def test_half_precision_is_measured_in_float32():
    """Products in bfloat16 are off by 2⁻⁸ of themselves, each Ritz value hence by about as much."""
    found = jax.jit(partial(stable.ritz, lambda a, z: a * z))(jnp.bfloat16(0.5), jnp.ones(3, jnp.bfloat16))
    assert found.values.dtype == jnp.complex64
    assert apart(found.values, [0.5] * 3) <= 0.5 * 2**-7


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_spectra_lower_for_devices_without_eig(platform):
    """A negative control shows that `eig` does not."""
    matrix = jax.ShapeDtypeStruct((N, N), jnp.float32)
    step = lambda m: stable.automatic_dt(linear, m, jnp.zeros(N, jnp.float32))
    assert jax.export.export(jax.jit(step), platforms=[platform])(matrix).platforms == (platform,)
    if platform == "tpu":
        with pytest.raises(NotImplementedError):
            jax.export.export(jax.jit(jnp.linalg.eigvals), platforms=[platform])(matrix)


@given(matrix=entries)
@relaxed
def test_the_largest_dt_is_where_steps_stop_contracting(matrix):
    """Just below it every |1 − dt (1 − λ)| < 1, just above one is not; without a stable flow there is none."""
    values = np.linalg.eigvals(matrix)
    dt = float(stable.largest_dt(jnp.asarray(values, complex)))
    growth = lambda dt: np.abs(1 - dt * (1 - values)).max()
    if values.real.max() >= 1:
        assert dt == 0
    else:
        assert growth(0.999 * dt) < 1 < growth(1.001 * dt)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 0.5), (-0.9, -0.2), (-8.0, -7.0)])
def test_automatic_dt_is_the_best_one_of_a_real_spectrum(low, high):
    """On eigenvalues in [a, b] the fastest step is 2/(2 − a − b), if 0.9 of the stable range 2/(1 − a) allows it."""
    best = min(2 / (2 - low - high), 0.9 * 2 / (1 - low))
    dt = step_length(symmetric_map(low, high))
    chex.assert_trees_all_close(dt, best, rtol=0.03)  # 64 trial lengths


def test_automatic_dt_does_not_pass_the_largest_asked_for():
    slow = 0.98 * jnp.eye(N)  # alone, λ = 0.98 is fastest at dt = 1/(1 − λ) = 50
    assert step_length(slow) == 1.0
    chex.assert_trees_all_close(step_length(slow, 80.0), 50.0, rtol=0.02)


def test_automatic_dt_keeps_away_from_the_largest_that_settles():
    """λ = −3 settles up to dt = 1/2, and λ = 0.99 asks for all of that: it gets nine tenths."""
    stiff = jnp.diag(jnp.array([0.99] + [-3.0] * (N - 1)))
    chex.assert_trees_all_close(step_length(stiff), 0.9 / 2, rtol=1e-9)


def test_modes_that_grow_at_any_dt_have_no_say():
    mixed, calm = (jnp.diag(jnp.array([top] + [-3.0] * (N - 1))) for top in (1.5, 0.0))
    chex.assert_trees_all_close(step_length(mixed), step_length(calm), rtol=1e-12)
    assert step_length(2.0 * jnp.eye(N)) == 1.0


def test_automatic_dt_settles_a_network_on_which_plain_iteration_fails():
    w = symmetric_map(-3.0, -1.5, N)
    f = lambda z: jnp.tanh(w @ z) + 0.1
    dt = step_length(w)  # J = w at z = 0
    assert solve(f, jnp.zeros(N), picard()).status != Status.CONVERGED
    assert solve(f, jnp.zeros(N), relaxation(dt)).status == Status.CONVERGED


def test_no_gradient_passes_a_spectrum():
    """Asking for dt inside a differentiated program costs nothing and changes nothing, closures included."""
    loss = lambda w: stable.automatic_dt(lambda _, z: w @ z, None, jnp.zeros(N)) * jnp.sum(w)
    w = jnp.asarray(DRAWN) / 4
    dt = step_length(w)
    chex.assert_trees_all_close(jax.jit(jax.grad(loss))(w), jnp.full_like(w, dt), rtol=1e-12)


def tanh_map(w, z):
    return jnp.tanh(w @ z + 0.2)


def test_the_penalty_is_unbiased(key):
    """Within four standard errors of the dense Frobenius norm; vᵀAv has the variance 2 Σ_{i≠j} A_ij², A = JᵀJ."""
    w, z, samples = jnp.asarray(DRAWN), jnp.linspace(-1.0, 1.0, N), 20_000
    j = np.asarray(jax.jacobian(partial(tanh_map, w))(z))
    a = j.T @ j
    error = np.sqrt(2 * (np.sum(a**2) - np.sum(np.diag(a) ** 2)) / samples) / N
    estimate = jax.jit(lambda w, key: stable.jacobian_penalty(tanh_map, w, z, key, samples))(w, key)
    assert abs(estimate - np.sum(j**2) / N) <= 4 * error
    assert error < 0.01 * estimate  # or the test could not fail


def test_the_penalty_can_be_differentiated_in_weights_and_state(key):
    w, z = jnp.asarray(DRAWN) / 4, jnp.linspace(-1.0, 1.0, N)
    penalty = lambda w, z: stable.jacobian_penalty(tanh_map, w, z, jax.random.clone(key), 2)
    check_grads(jax.jit(penalty), (w, z), order=1, modes=["fwd", "rev"])


@given(matrix=entries, bound=st.floats(0.1, 2.0))
@relaxed
def test_normalised_weights_keep_their_bound(matrix, bound):
    """The oracle is the dense singular values.  1000 iterations leave ln(6)/4000 at worst."""
    normalise = jax.jit(partial(stable.spectral_normalise, steps=1000))
    w = normalise(jnp.asarray(matrix), bound)
    assert np.linalg.norm(w, 2) <= bound * (1 + np.log(N) / 4000)
    if np.linalg.norm(matrix, 2) <= bound:
        np.testing.assert_array_equal(w, matrix)


def test_the_stated_shortfall_holds_by_default_and_shows_with_few_steps():
    w = jnp.asarray(RNG.normal(size=(64, 64)))
    excess = lambda steps: float(np.linalg.norm(stable.spectral_normalise(w, 1.0, steps=steps), 2)) - 1
    assert 0 <= excess(50) <= np.log(64) / 200
    assert excess(1) > 0.1


def test_the_gradient_is_that_of_the_exact_norm():
    """The oracle divides by the largest singular value of an SVD and differentiates through it."""
    w, probe = jnp.asarray(DRAWN[:4]), jnp.asarray(DRAWN[2:])
    ours = jax.grad(lambda w: jnp.sum(probe * stable.spectral_normalise(w, 0.9, steps=1000)))(w)
    exact = jax.grad(lambda w: jnp.sum(probe * w * 0.9 / jnp.linalg.svd(w, compute_uv=False)[0]))(w)
    chex.assert_trees_all_close(ours, exact, atol=1e-12)


def test_a_singular_vector_carried_along_needs_one_step():
    w = jnp.asarray(DRAWN)
    v = stable.singular_vector(w, steps=500)
    near = w + 1e-3
    fresh, carried = (stable.singular_vector(near, steps=1, start=s) for s in (None, v))
    sigma = np.linalg.norm(near, 2)
    assert abs(jnp.linalg.norm(near @ carried) - sigma) < 1e-6 * sigma < abs(jnp.linalg.norm(near @ fresh) - sigma)
    once = stable.spectral_normalise(near, 1.0, steps=0, start=carried)
    chex.assert_trees_all_close(once, near / sigma, rtol=1e-6)


def test_a_singular_vector_carries_no_gradient():
    """Not even one that has not settled, of the matrix or of its start."""
    vector = lambda w, start: jnp.sum(stable.singular_vector(w, steps=2, start=start))
    pulled = jax.grad(vector, (0, 1))(jnp.asarray(DRAWN), jnp.arange(1.0, N + 1))
    chex.assert_trees_all_equal(pulled, jax.tree.map(jnp.zeros_like, pulled))


def test_normalising_batches_and_half_precision():
    w = jnp.stack([jnp.asarray(DRAWN), jnp.zeros((N, N))])
    one = jax.jit(stable.spectral_normalise)
    each = jnp.stack([one(x, 0.5) for x in w])
    chex.assert_trees_all_close(jax.vmap(one, in_axes=(0, None))(w, 0.5), each, rtol=1e-12)
    half = one(w[0].astype(jnp.bfloat16), 0.5)
    assert half.dtype == jnp.bfloat16
    assert np.linalg.norm(half.astype(jnp.float32), 2) <= 0.5 * 1.02


@given(a=entries, b=entries, m=st.floats(0.01, 1.5))
@relaxed
def test_monotone_weights_are_monotone(a, b, m):
    """No eigenvalue of the symmetric part of I − W lies below m."""
    w = np.asarray(stable.monotone(jnp.asarray(a), jnp.asarray(b), m))
    part = np.eye(N) - (w + w.T) / 2
    assert np.linalg.eigvalsh(part)[0] >= m - 1e-12 * max(1.0, np.linalg.norm(w))


def test_a_monotone_network_has_one_fixed_point_and_a_free_one_has_not():
    """From two far starts; B alone, not made antisymmetric, is the negative control."""
    a, b = 2 * jnp.asarray(DRAWN), 3 * jnp.asarray(DRAWN.T)
    starts = (jnp.full(N, -5.0), jnp.full(N, 5.0))
    f = lambda w, z: jax.nn.relu(w @ z + 1.0)

    def settle(w, dt=0.005):
        return [solve(partial(f, w), z0, relaxation(dt), Stop(rtol=1e-6, max_steps=20_000)) for z0 in starts]

    w = stable.monotone(a, b, 0.5)
    low, high = settle(w)
    assert low.status == high.status == Status.CONVERGED
    chex.assert_trees_all_close(low.value, high.value, atol=1e-4)
    assert solve(partial(f, w), starts[1], picard()).status != Status.CONVERGED
    assert any(free.status != Status.CONVERGED for free in settle(b))


def test_symmetric_weights_have_an_energy_that_never_rises():
    """E = −½ zᵀWz − dᵀz + Σ ∫₀^z artanh along dz/dt; with the same weights not made symmetric it rises somewhere."""
    raw, d = 4 * jnp.asarray(DRAWN), jnp.linspace(-0.5, 0.5, N)
    potential = lambda z: z * jnp.arctanh(z) + jnp.log1p(-z * z) / 2
    energy = lambda w, z: -z @ w @ z / 2 - d @ z + jnp.sum(potential(z))

    def energies(w):
        walk = lambda z, _: (z + 0.01 * (jnp.tanh(w @ z + d) - z), energy(w, z))
        return jax.lax.scan(walk, jnp.linspace(0.9, -0.9, N), length=1000)[1]

    w = stable.symmetric(raw)
    assert (jnp.diagonal(w) == 0).all()
    chex.assert_trees_all_equal(w, w.T)
    assert jnp.diff(energies(w)).max() <= 1e-12
    assert jnp.diff(energies(raw)).max() > 1e-3


BAD = {
    "size": lambda: stable.ritz(linear, jnp.eye(2), jnp.ones(2), size=0),
    "safety": lambda: stable.automatic_dt(linear, jnp.eye(2), jnp.ones(2), safety=1.0),
    "largest": lambda: stable.automatic_dt(linear, jnp.eye(2), jnp.ones(2), largest=0.0),
    "samples": lambda: stable.jacobian_penalty(linear, jnp.eye(2), jnp.ones(2), jax.random.key(0), samples=0),
    "bound": lambda: stable.spectral_normalise(jnp.eye(2), 0.0),
    "m": lambda: stable.monotone(jnp.eye(2), jnp.eye(2), 0.0),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_numbers_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got "):
        BAD[name]()
