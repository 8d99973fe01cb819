"""The monotone cell: its inverse, its one fixed point whatever the weights, and its gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from bptoolkit.fixed_point import Status, Stop, almeida_pineda, dense, implicit, picard, relaxation, solve
from bptoolkit.fixed_point.splitting import forward_backward, peaceman_rachford
from bptoolkit.models import equilibrium
from bptoolkit.models.monotone import _step_length, inverse, monotone_cell

TIGHT = Stop(rtol=1e-12, max_steps=20_000)
X = jnp.array([0.3, -1.0, 0.7])


def strong(cell, key, size=6.0):
    """Parameters as after a wild training: the recurrent ones many times as large as at the start."""
    params = cell.init(key)
    return params | {"a": size * params["a"], "s": size * params["s"]}


def settled(cell, params, solver, stop=TIGHT, x=X, z0=None):
    current = cell.drive(params, x)
    z0 = jnp.zeros(cell.state.shape) if z0 is None else z0
    return solve(
        lambda z: cell.respond(params, current, z), z0, solver, stop, resolvent=cell.resolvent(params, current)
    )


def papers_w(params, m):
    """W of the paper, from the arrays of the parameters."""
    a, b = np.asarray(params["a"]), np.asarray(params["s"]).T
    return (1 - m) * np.eye(len(a)) - a.T @ a + b - b.T


@pytest.mark.parametrize("m", [0.2, 1.0])
def test_step_is_the_papers_equation(m, key):
    cell = monotone_cell(3, 5, 2, m=m)
    params = cell.init(key)
    z = jnp.arange(5.0)
    p = jax.tree.map(np.asarray, params)
    np.testing.assert_allclose(
        cell.step(params, X, z), np.maximum(papers_w(params, m) @ z + p["u"].T @ X + p["b"], 0), atol=1e-12
    )
    np.testing.assert_allclose(cell.readout(params, z), p["v"].T @ z + p["c"], rtol=1e-12)
    np.testing.assert_array_equal(cell.step(params, X, z), cell.respond(params, cell.drive(params, X), z))


def test_no_weights_can_undo_the_monotonicity(key):
    """The symmetric part of I − W has no eigenvalue below m."""
    params = strong(monotone_cell(3, 12, 2, m=0.2), key)
    w = papers_w(params, 0.2)
    assert np.linalg.eigvalsh(np.eye(12) - (w + w.T) / 2).min() >= 0.2 - 1e-12


@pytest.mark.parametrize("n", [1, 32, 33, 70])
def test_inverse_is_the_inverse(n, key):
    """Of a matrix with positive definite symmetric part and a skew part ten times as large."""
    s = jax.random.normal(key, (n, n))
    a = s @ s.T / n + jnp.eye(n) + 10 * (s - s.T)
    np.testing.assert_allclose(inverse(a), np.linalg.inv(np.asarray(a)), atol=1e-11)


def test_inverse_in_float32_is_as_accurate_as_its_condition_allows(key):
    """‖X − a⁻¹‖ ≤ eps · κ ‖a⁻¹‖, a backward stable solver's bound with its constant set to one."""
    s = np.asarray(jax.random.normal(key, (87, 87)))
    a = s @ s.T / 87 + np.eye(87) + (s - s.T)
    exact = np.linalg.inv(a)
    error = np.linalg.norm(np.asarray(inverse(jnp.asarray(a, jnp.float32))) - exact, 2)
    assert error <= np.finfo(np.float32).eps * np.linalg.cond(a) * np.linalg.norm(exact, 2)


def test_derivative_of_the_inverse_is_that_of_an_ordinary_solve(key):
    a = 3 * jnp.eye(20) + jax.random.normal(key, (20, 20)) / 20
    direction = jnp.cos(jnp.arange(400.0)).reshape(20, 20)
    ours, theirs = (jax.jvp(f, (a,), (direction,))[1] for f in (inverse, jnp.linalg.inv))
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("given", [{}, {"alpha": 0.1}, {"alpha": jnp.float32(3.0)}], ids=["own", "0.1", "3"])
def test_resolvent_against_a_dense_solve(given, key):
    cell = monotone_cell(3, 20, 2, m=0.3, alpha=0.7)
    params = strong(cell, key)
    current, u = cell.drive(params, X), jnp.sin(jnp.arange(20.0))
    resolvent = cell.resolvent(params, current, **given)
    alpha = float(given.get("alpha", 0.7))
    w = papers_w(params, 0.3)
    expected = np.linalg.solve(np.eye(20) + alpha * (np.eye(20) - w), u + alpha * current)
    np.testing.assert_allclose(resolvent.backward(u), expected, atol=1e-12)
    np.testing.assert_allclose(resolvent.affine(u), w @ u + current, atol=1e-12)


def test_the_step_length_left_out_is_that_of_the_formula(key):
    """1/√(m L) with √(‖A‖₁ ‖A‖_∞) for L, which is no less than ‖A‖₂."""
    a = np.asarray(jax.random.normal(key, (7, 7)))
    bound = np.sqrt(np.linalg.norm(a, 1) * np.linalg.norm(a, np.inf))
    np.testing.assert_allclose(_step_length(jnp.asarray(a), 0.3), 1 / np.sqrt(0.3 * bound), rtol=1e-12)
    assert bound >= np.linalg.norm(a, 2)


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_the_step_length_follows_the_weights(size, key):
    """Steps stay within a factor of four of the best of seven lengths, from W of norm about 1 to about 1000."""
    cell = monotone_cell(3, 10, 2, m=0.5)
    params = strong(cell, key, size)
    current = cell.drive(params, X)

    def steps(alpha):
        resolvent = cell.resolvent(params, current, alpha)
        f = lambda z: cell.respond(params, current, z)
        return solve(f, jnp.zeros(10), peaceman_rachford(), Stop(rtol=1e-6, max_steps=3000), resolvent=resolvent).steps

    best = jax.vmap(steps)(jnp.logspace(-2.5, 0.5, 7)).min()
    assert int(steps(None)) <= 4 * int(best)


def products(jaxpr):
    """The shapes that matrix products have, loops and calls included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def test_the_inverse_is_made_once_for_a_batch(key):
    """Under vmap over x no product inside it has a batch axis; over parameters it must, which shows that we can see."""
    cell = monotone_cell(3, 40, 2)
    many = jax.vmap(cell.init)(jax.random.split(key, 7))
    params = jax.tree.map(lambda leaf: leaf[0], many)

    def backward(params, x):
        return cell.resolvent(params, cell.drive(params, x)).backward(jnp.ones(40))

    def batched(axes, *arguments):
        shapes = products(jax.make_jaxpr(jax.vmap(backward, axes))(*arguments).jaxpr)
        return [shape for shape in shapes if len(shape) > 2]

    assert not batched((None, 0), params, jnp.ones((7, 3)))
    assert batched((0, None), many, X)


def test_nothing_in_it_calls_lapack_in_batches(key):
    """Seeds on several CPU devices can block each other there."""
    cell = monotone_cell(3, 40, 2)
    run = lambda key: cell.resolvent(cell.init(key), jnp.ones(40)).backward(jnp.ones(40))
    assert "lapack" not in jax.jit(jax.vmap(run)).lower(jax.random.split(key, 3)).as_text()
    assert "lapack" in jax.jit(jax.vmap(jnp.linalg.inv)).lower(jnp.ones((3, 40, 40))).as_text()


def test_it_settles_where_plain_iteration_cannot(key):
    """One fixed point, from whatever start and by whatever route."""
    cell = monotone_cell(3, 10, 2, m=0.5, alpha=0.1)
    params = strong(cell, key)
    by = {
        "split": settled(cell, params, peaceman_rachford()),
        "elsewhere": settled(cell, params, peaceman_rachford(), z0=jnp.full(10, 9.0)),
        "forward": settled(cell, params, forward_backward(0.005)),
        "damped": settled(cell, params, relaxation(0.02)),
    }
    for solution in by.values():
        assert solution.status == Status.CONVERGED
        np.testing.assert_allclose(solution.value, by["split"].value, atol=1e-9)
    assert settled(cell, params, picard()).status != Status.CONVERGED
    assert 3 * int(by["split"].steps) < int(by["forward"].steps)


@pytest.mark.parametrize("adjoint", ["dense", "relaxed"])
def test_gradient_against_a_dense_solve(adjoint, key):
    """δ = D (I − DW)⁻ᵀ ∂L/∂z, D = diag(z > 0); an adjoint that takes short Euler steps settles as well."""
    cell = monotone_cell(3, 10, 2, m=0.5)
    params = strong(cell, key)
    how = {"dense": dense(), "relaxed": almeida_pineda(relaxation(0.02), TIGHT)}[adjoint]
    relax = implicit(peaceman_rachford(), how, TIGHT)

    def loss(params, current):
        extra = lambda args: {"resolvent": cell.resolvent(*args)}
        f = lambda args, z: cell.respond(*args, z)
        return jnp.sum(cell.readout(params, relax(f, (params, current), jnp.zeros(10), extra=extra).value))

    current = cell.drive(params, X)
    gradient, delta = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, current)
    z = np.asarray(settled(cell, params, peaceman_rachford()).value)
    w, on = papers_w(params, 0.5), z > 0
    assert 0 < on.sum() < 10
    expected = on * np.linalg.solve((np.eye(10) - on[:, None] * w).T, np.asarray(params["v"]).sum(1))
    np.testing.assert_allclose(delta, expected, atol=1e-9)
    outer = np.outer(z, expected)  # ∂L/∂w, in w = (1 − m) I − aᵀa + s − sᵀ
    np.testing.assert_allclose(gradient["a"], -params["a"] @ (outer + outer.T), atol=1e-8)
    np.testing.assert_allclose(gradient["s"], outer - outer.T, atol=1e-8)


def test_the_adjoint_is_stable_for_all_weights(key):
    """Re λ(W D) < 1 for every pattern of active units, so that short Euler steps settle the error."""
    params = strong(monotone_cell(3, 8, 2, m=0.5), key)
    w = papers_w(params, 0.5)
    patterns = np.stack(np.unravel_index(np.arange(256), (2,) * 8), axis=1)
    largest = max(np.linalg.eigvals(w * on[:, None]).real.max() for on in patterns)
    assert largest < 1
    assert max(np.abs(np.linalg.eigvals(w * on[:, None])).max() for on in patterns) > 1  # Picard is not enough


def test_a_model_of_it_gives_one_gradient_whether_examples_come_alone_or_together(key):
    """`equilibrium` hands the resolvent on; the gradient passes through one inverse or three."""
    cell = monotone_cell(3, 6, 2)
    model = equilibrium(cell, implicit(peaceman_rachford(), dense(), TIGHT))
    params = strong(cell, key)
    inputs = jnp.stack([X, -X, 2 * X])
    loss = lambda params, x: jnp.sum(jnp.square(model.apply(params, x)[0]))
    together = jax.jit(jax.grad(lambda p: jnp.sum(jax.vmap(loss, (None, 0))(p, inputs))))(params)
    alone = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, inputs)
    chex.assert_trees_all_close(together, jax.tree.map(lambda g: g.sum(0), alone), atol=1e-10)
    assert model.apply(params, X)[1].forward.status == Status.CONVERGED


@pytest.mark.parametrize(
    ("sizes", "options", "sentence"),
    [
        ((3, 0, 2), {}, "one or more"),
        ((3, 4, 2), {"m": 0.0}, "m must"),
        ((3, 4, 2), {"m": np.float32(-1)}, "m must"),
        ((3, 4, 2), {"m": jnp.inf}, "m must"),
        ((3, 4, 2), {"alpha": -1.0}, "alpha must"),
        ((3, 4, 2), {"alpha": jnp.float32(-1)}, "alpha must"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(sizes, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        monotone_cell(*sizes, **options)
