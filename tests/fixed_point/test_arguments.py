"""What a relaxation is given: one sentence for what cannot be, whatever its type; what is traced passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import fixed_point as fp
from bptoolkit.fixed_point import (
    Status,
    Stop,
    almeida_pineda,
    anderson,
    bicgstab,
    cg_normal,
    chebyshev,
    damped,
    exact,
    gmres,
    implicit,
    picard,
    relaxation,
    solve,
)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: solve(lambda z: z[:2], jnp.zeros(3)), "shapes and dtypes it was given"),
        (lambda: solve(lambda z: z.astype(jnp.float32), jnp.zeros(3)), "shapes and dtypes it was given"),
        (lambda: solve(lambda z: z, jnp.zeros(3, jnp.int32)), "must be floating"),
        (lambda: solve(lambda z: z, ()), "at least one array"),
        (lambda: damped(1.0), r"damping must be in \[0, 1\)"),
        (lambda: relaxation(0.0), "dt must be positive"),
        (lambda: anderson(0), "depth must be at least 1"),
        (lambda: solve(jnp.tanh, jnp.ones(3), picard), r"solver must be a Solver, as picard\(\) .*, got picard"),
        (lambda: solve(jnp.tanh, jnp.ones(3), 0.5), "solver must be a Solver, .*, got float"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stop": 1e-5}, "stop must be a Stop, got 1e-05"),
        ({"stop": Stop(rtol="small")}, "rtol must be a number, got 'small'"),
        ({"stop": Stop(atol=1j)}, "atol must be a number, got 1j"),
        ({"stop": Stop(rtol=jax.random.key(0))}, "rtol must be a number, got Array"),
        ({"stop": Stop(rtol=jnp.ones(2))}, r"rtol must be one number, got shape \(2,\)"),
        ({"stop": Stop(rtol=jnp.float32(-1))}, "rtol must be at least 0, got -1"),
        ({"stop": Stop(atol=float("nan"))}, "atol must be at least 0, got nan"),
        ({"stop": Stop(max_steps=-1)}, "max_steps must be at least 0, got -1"),
        ({"stop": Stop(max_steps=2.7)}, "max_steps must be a whole number below 2³¹, got 2.7"),
        ({"stop": Stop(max_steps=float("inf"))}, "max_steps must be a whole number below 2³¹, got inf"),
        ({"stop": Stop(max_steps=None)}, "max_steps must be a number, got None"),
        ({"rtol": 1e-12}, r"rtol belongs into stop, got it beside. Write stop=Stop\(rtol=1e-12\)"),
        ({"tol": 1e-12}, r"tol belongs into stop, got it beside. Write stop=Stop\(rtol=1e-12\)"),
        ({"max_steps": 5}, "max_steps belongs into stop"),
    ],
)
def test_what_cannot_end_a_relaxation_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        solve(lambda z: 0.5 * jnp.cos(z), jnp.zeros(3), **options)


def test_a_written_tolerance_may_be_an_array_inside_of_jit():
    """A concrete one is read; a traced one passes."""
    settled = lambda rtol: solve(lambda z: 0.5 * jnp.cos(z), jnp.zeros(3), stop=Stop(rtol=rtol)).status
    right, wrong = jnp.float32(1e-3), jnp.float32(-1)
    assert jax.jit(lambda: settled(right))() == Status.CONVERGED
    assert jax.jit(settled)(right) == Status.CONVERGED
    with pytest.raises(ValueError, match="rtol must be at least 0"):
        jax.jit(lambda: settled(wrong))()


@pytest.mark.parametrize("make", [almeida_pineda, bicgstab, gmres, cg_normal, exact, implicit])
def test_what_is_no_stop_is_refused_where_it_is_given(make):
    with pytest.raises(ValueError, match=r"stop must be a Stop, got 0\.001"):
        make(stop=1e-3)


WRONG = {
    "damping": (damped, (-0.5, 1.0), r"damping must be in \[0, 1\), got"),
    "dt": (relaxation, (-1.0, 0.0, np.inf), "dt must be positive and finite, got"),
    "ridge": (lambda ridge: anderson(5, ridge), (-1.0, np.inf), "ridge must be at least 0 and finite, got"),
    "chebyshev's low": (lambda low: chebyshev(low, 0.9), (0.95, -np.inf), "chebyshev needs low < high < 1, got"),
    "chebyshev's high": (lambda high: chebyshev(0.5, high), (1.5, 0.2), "chebyshev needs low < high < 1, got"),
    "alpha": (fp.forward_backward, (-1.0, 0.0, np.inf), "alpha must be positive and finite, got"),
    "bound": (lambda b: fp.spectral_normalise(jnp.eye(2), b), (-0.5, np.inf), "bound must be positive and finite, got"),
    "m": (lambda m: fp.monotone(jnp.eye(2), jnp.eye(2), m), (-1.0, np.inf), "m must be positive and finite, got"),
    "safety": (lambda s: fp.automatic_dt(*LINEAR, safety=s), (-0.5, 1.0), r"safety must be in \(0, 1\), got"),
    "largest": (lambda dt: fp.automatic_dt(*LINEAR, largest=dt), (-1.0, 0.0), "largest must be positive, got"),
}


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.asarray, jnp.float32])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("transform", [lambda f: f(), lambda f: jax.jit(f)()], ids=["eager", "inside jit"])
def test_a_written_number_out_of_range_is_refused_whatever_its_type(name, kind, transform):
    build, wrong, sentence = WRONG[name]
    for number in map(kind, (*wrong, np.nan)):
        with pytest.raises(ValueError, match=sentence):
            transform(lambda number=number: build(number))


@pytest.mark.parametrize("name", sorted(WRONG.keys() - {"ridge"}))
def test_a_traced_number_passes(name):
    jax.eval_shape(lambda value: jax.tree.leaves(WRONG[name][0](value)) and 0.0, -0.5)


LINEAR = (lambda args, z: args @ z, jnp.eye(2), jnp.ones(2))
WHOLE = {
    "anderson's depth": (anderson, "Take 5"),
    "broyden's memory": (fp.broyden, "Take 10"),
    "gmres' memory": (fp.gmres, "Take 20"),
    "shine's steps": (fp.shine, "Take 0"),
    "neumann's terms": (fp.neumann, "Take 0"),
    "phantom's steps": (fp.phantom, "Take 1"),
    "unrolled's steps": (fp.unrolled, "Take as many"),
    "unrolled's truncate": (lambda n: fp.unrolled(5, truncate=n), "Leave it out"),
    "unrolled's checkpoint": (lambda n: fp.unrolled(5, checkpoint=n), "Take True"),
    "ritz' size": (lambda n: fp.ritz(*LINEAR, size=n), "Take 40"),
    "samples of a penalty": (lambda n: fp.jacobian_penalty(*LINEAR, jax.random.key(0), n), "One is usual"),
    "steps of a history": (lambda n: fp.residual_history(*LINEAR, steps=n), "Take 50"),
    "diagnose's steps": (lambda n: fp.diagnose(*LINEAR, steps=n), "Take 50"),
    "diagnose's size": (lambda n: fp.diagnose(*LINEAR, size=n), "Take 40"),
    "directions": (lambda n: fp.gradient_check(*LINEAR, lambda a, z: z.sum(), directions=n), "Take 4"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_number_that_shapes_the_program_is_whole_and_not_traced(name):
    """And the sentence says what to take."""
    build, advice = WHOLE[name]
    for wrong in (2.5, float("nan"), "2", jnp.float32(2), -1):
        with pytest.raises(ValueError, match=rf"must be (a whole number|at least [01]), got .*\. {advice}"):
            build(wrong)
    with pytest.raises(ValueError, match=rf"must be a whole number, got a traced one.*\. {advice}"):
        jax.eval_shape(lambda n: build(n) and 0.0, 2)


def test_a_whole_number_of_numpy_is_one():
    anderson(np.int64(3)).init(jnp.ones(2))
    assert fp.unrolled(np.int32(3), truncate=np.int64(2)) is not None
