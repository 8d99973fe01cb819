"""A settled model: its fixed point, the same gradient by three routes, and what it says when things go wrong."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit.fixed_point import Status, Stop, dense, gmres, implicit, new_probe, one_step, picard, unrolled
from bptoolkit.learning import backprop
from bptoolkit.models import equilibrium, hopfield_cell, mlp, rate_cell
from bptoolkit.types import Cell

CELLS = {"rate": rate_cell, "hopfield": hopfield_cell}
every = pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
TIGHT = implicit(stop=Stop(rtol=1e-13))
X = jnp.array([0.3, -1.0, 0.7])


def gradient(cell, relax, params):
    model = equilibrium(cell, relax)
    return jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(model.apply(params, X)[0]))))(params)


@every
def test_answers_with_the_readout_of_a_fixed_point(make, key):
    cell = make(3, 6, 2)
    model = equilibrium(cell, TIGHT)
    params = model.init(key)
    logits, info = model.apply(params, X)
    z = model.cell.settle(params, X).value
    np.testing.assert_allclose(cell.step(params, X, z), z, atol=1e-12)
    np.testing.assert_array_equal(logits, cell.readout(params, z))
    assert info.forward.status == Status.CONVERGED


@every
def test_two_routes_give_one_gradient(make, key):
    """By settling the error, and by backpropagation through 100 steps that contract by a half."""
    cell = make(3, 6, 2)
    params = cell.init(key)
    through_time = gradient(cell, unrolled(100), params)
    chex.assert_trees_all_close(gradient(cell, TIGHT, params), through_time, atol=1e-10)
    chex.assert_trees_all_close(
        gradient(cell, implicit(adjoint=dense(), stop=Stop(rtol=1e-13)), params), through_time, atol=1e-10
    )


def test_the_drive_is_an_economy_not_another_network(key):
    cell = rate_cell(3, 6, 2)
    params = cell.init(key)
    plain = cell._replace(drive=None, respond=None)
    chex.assert_trees_all_close(gradient(cell, TIGHT, params), gradient(plain, TIGHT, params), atol=1e-12)


def test_report_gives_the_residual_of_the_state(key):
    model = equilibrium(rate_cell(3, 6, 2), implicit(stop=Stop(max_steps=3)))
    params = model.init(key)
    report, z = model.apply(params, X)[1].forward, model.cell.settle(params, X).value
    size = np.linalg.norm(z - model.cell.step(params, X, z))
    assert float(report.residual) == pytest.approx(size, rel=1e-12)
    assert (int(report.steps), int(report.status)) == (3, Status.MAX_STEPS)


def test_backward_report_comes_out_through_the_probe(key):
    model = equilibrium(rate_cell(3, 12, 2))
    loss = lambda probe, params: jnp.sum(model.apply(params, X, probe)[0])
    steps, _, rate, status, *_ = jax.jit(jax.grad(loss))(new_probe(model.cell.state), model.init(key))
    assert steps > 1
    assert 0 < rate < 0.5  # the adjoint contracts at least as fast as the step's gain
    assert status == Status.CONVERGED


def test_one_example_in_a_batch_settles_as_alone(key):
    model = equilibrium(rate_cell(3, 6, 2))
    params = model.init(key)
    together, info = jax.vmap(model.apply, (None, 0))(params, jnp.stack([X, 5 * X, 0 * X]))
    alone, alone_info = model.apply(params, 5 * X)
    np.testing.assert_allclose(together[1], alone, atol=1e-14)
    assert info.forward.steps[1] == alone_info.forward.steps


def test_a_network_that_does_not_settle_answers_and_says_so(key):
    model = equilibrium(rate_cell(3, 6, 2), implicit(stop=Stop(max_steps=50)))
    params = model.init(key)
    params["w"] = -20 * jnp.eye(6)  # each unit flips its own sign for ever
    logits, info = model.apply(params, X)
    assert np.isfinite(logits).all()
    assert info.forward.status != Status.CONVERGED


def test_a_step_of_another_shape_is_refused():
    cell = Cell(
        init=lambda key: {"w": jnp.ones((4, 5))},
        step=lambda params, x, z: z @ params["w"],
        readout=lambda params, z: z,
        state=jax.ShapeDtypeStruct((4,), float),
    )
    model = equilibrium(cell)
    with pytest.raises(ValueError, match=r"float64\[4\], got float64\[5\].\n  params\['w'\] has shape \(4, 5\)"):
        model.apply(model.init(jax.random.key(0)), X)


def test_a_state_may_be_a_tree(key):
    """Two coupled halves of one linear network: z = (I − M)⁻¹ b, solved by NumPy."""
    m, b = np.array([[0.1, 0.4], [-0.3, 0.2]]), np.array([1.0, 2.0])
    cell = Cell(
        init=lambda key: {"m": jnp.array(m)},
        step=lambda p, x, z: {
            "one": p["m"][0, :1] * z["one"] + p["m"][0, 1:] * z["two"] + x[:1],
            "two": p["m"][1, :1] * z["one"] + p["m"][1, 1:] * z["two"] + x[1:],
        },
        readout=lambda p, z: jnp.concatenate([z["one"], z["two"]]),
        state={name: jax.ShapeDtypeStruct((1,), float) for name in ("one", "two")},
    )
    logits = equilibrium(cell, TIGHT).apply({"m": jnp.array(m)}, jnp.array(b))[0]
    np.testing.assert_allclose(logits, np.linalg.solve(np.eye(2) - m, b), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: equilibrium(mlp(4, 5, 3)), "equilibrium needs a Cell, got Model"),
        (lambda: equilibrium(rate_cell(4, 5, 3), picard()), "relax must be a Relaxation, .* got a solver"),
        (lambda: equilibrium(rate_cell(4, 5, 3), optax.sgd(1.0)), "relax must be a Relaxation, .* got a solver"),
        (
            lambda: equilibrium(rate_cell(4, 5, 3), implicit),
            r"as implicit\(\) or unrolled\(50\) makes one, got implicit",
        ),
        (lambda: equilibrium(rate_cell(4, 5, 3), unrolled), "relax must be a Relaxation, .* got unrolled"),
        (lambda: equilibrium(rate_cell(4, 5, 3), picard), "relax must be a Relaxation, .* got picard"),
        (lambda: equilibrium(rate_cell(4, 5, 3), gmres()), "relax must be a Relaxation, .* got adjoint"),
        (lambda: equilibrium(rate_cell(4, 5, 3), one_step()), "relax must be a Relaxation, .* got Biased"),
        (lambda: equilibrium(rate_cell(4, 5, 3), "implicit"), "relax must be a Relaxation, .* got str"),
        (lambda: backprop(rate_cell(4, 5, 3)), "backprop needs a Model, got Cell"),
    ],
)
def test_parts_in_the_wrong_place_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_relaxation_of_ones_own_passes():
    """One by its arguments, one that hands on what it gets, and one whose gradient is biased."""
    own = lambda f, args, z0, *, start=None, probe=None: implicit()(f, args, z0, start=start, probe=probe)
    for relax in (own, lambda *args, **options: implicit()(*args, **options), unrolled(5, truncate=2)):
        assert equilibrium(rate_cell(4, 5, 3), relax).cell.settle is not None
