"""A relaxation that starts in a narrow dtype ends at the wide map's fixed point, with most steps made cheaply."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bptoolkit.fixed_point import Status, Stop, almeida_pineda, anderson, implicit, picard, solve
from bptoolkit.fixed_point.precision import narrowed, settled_narrowly

TIGHT = Stop(rtol=1e-12)


def network():
    w = jnp.sin(jnp.arange(64.0)).reshape(8, 8) / 5
    return (w, jnp.cos(jnp.arange(8.0))), lambda args, z: jnp.tanh(args[0] @ z + args[1])


def watched(f, seen):
    """f that notes the dtypes it is traced in."""
    return lambda args, z: (seen.add(str(z.dtype)), f(args, z))[1]


@pytest.mark.parametrize("solver", [picard(), anderson(), None], ids=["picard", "anderson", "nothing said"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_value_and_gradient_are_those_of_the_wide_map(solver, dtype):
    args, f = network()
    seen = set()

    def loss(relax, f):
        return lambda args: jnp.sum(jnp.arange(8.0) * relax(f, args, jnp.zeros(8)).value ** 2)

    rough = implicit(solver, almeida_pineda(stop=TIGHT), TIGHT, coarse=dtype)
    plain = implicit(solver, almeida_pineda(stop=TIGHT), TIGHT)
    found = jax.jit(jax.value_and_grad(loss(rough, watched(f, seen))))(args)
    chex.assert_trees_all_close(found, jax.jit(jax.value_and_grad(loss(plain, f)))(args), rtol=1e-9)
    assert {str(jnp.dtype(dtype)), "float64"} <= seen


def test_only_the_last_digits_are_settled_in_the_wide_dtype():
    """ρ = 0.9, z0 = 0: from 1e-4 to 1e-12 are 8/12 of the steps, and only these are wide.  Control: no start."""
    wide = []

    def f(_, z):
        if z.dtype == jnp.float64:
            jax.debug.callback(lambda: wide.append(1))
        return 0.9 * z + jnp.ones((), z.dtype)

    def counted(coarse):
        wide.clear()
        solution = implicit(picard(), stop=TIGHT, coarse=coarse)(f, (), jnp.zeros(3))
        jax.effects_barrier()
        assert solution.status == Status.CONVERGED
        chex.assert_trees_all_close(solution.value, jnp.full(3, 10.0), rtol=1e-11)
        return len(wide), int(solution.steps)

    few, steps = counted(jnp.float32)
    all_wide, plain_steps = counted(None)
    assert few <= 0.75 * all_wide
    assert abs(steps - plain_steps) < 0.1 * plain_steps


@pytest.mark.parametrize("allowed", [5, 200])
def test_the_budget_holds_for_both_dtypes_together(allowed):
    """Which within a tolerance of 0 uses it up: 5 steps are all narrow, of 200 the last ones are wide."""
    f = lambda _, z: 0.9 * z + jnp.ones((), z.dtype)
    solution = implicit(picard(), stop=Stop(rtol=0.0, max_steps=allowed), coarse=jnp.float32)(f, (), jnp.zeros(3))
    assert (solution.status, solution.steps) == (Status.MAX_STEPS, allowed)


def test_a_relaxation_lost_in_the_narrow_dtype_does_no_harm():
    """Beyond 65504 float16 overflows: the wide relaxation then starts from z0."""
    f = lambda _, z: 0.5 * z + jnp.square(jnp.asarray(1e3, z.dtype))
    solution = implicit(picard(), stop=TIGHT, coarse=jnp.float16)(f, (), jnp.zeros(2))
    assert solution.status == Status.CONVERGED
    chex.assert_trees_all_close(solution.value, jnp.full(2, 2e6), rtol=1e-11)


@pytest.mark.parametrize(
    ("status", "start"),
    [(Status.CONVERGED, 9), (Status.MAX_STEPS, 9), (Status.STALLED, 9), (Status.DIVERGED, 1), (Status.NONFINITE, 1)],
)
def test_where_the_narrow_relaxation_got_to_is_the_start_unless_it_was_lost(status, start):
    """From z0 = 1 to 9, however it ended there."""
    at_nine = solve(lambda z: z, jnp.full(2, 9, jnp.float32), picard())._replace(status=jnp.int32(status))
    found, _ = settled_narrowly(lambda _, z: z, (), jnp.ones(2), jnp.float32, TIGHT, lambda f, z, stop: at_nine)
    chex.assert_trees_all_equal(found, jnp.full(2, float(start)))


def test_complex_states_are_narrowed_to_complex64():
    current = jnp.arange(8.0)
    turned = lambda current, z: 0.5j * z + current.astype(z.dtype)
    solution = implicit(picard(), stop=TIGHT, coarse=jnp.float32)(turned, current, jnp.zeros(8, complex))
    chex.assert_trees_all_close(solution.value, current.astype(complex) / (1 - 0.5j), rtol=1e-11)
    assert narrowed(solution.value, jnp.float32).dtype == jnp.complex64


def test_under_vmap_samples_stay_apart():
    args, f = network()
    relax = implicit(picard(), stop=TIGHT, coarse=jnp.float32)
    gains = jnp.array([0.1, 1.0, jnp.nan])
    together = jax.vmap(lambda gain: relax(f, (gain * args[0], args[1]), jnp.zeros(8)))(gains)
    chex.assert_trees_all_close(together.value[1], relax(f, args, jnp.zeros(8)).value, rtol=1e-11)
    assert together.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.NONFINITE]


@pytest.mark.parametrize(("dtype", "state"), [(jnp.int32, float), (jnp.bfloat16, complex)])
def test_what_cannot_be_narrowed_is_refused(dtype, state):
    with pytest.raises(ValueError, match=r"must be real and floating|float32 or wider"):
        narrowed(jnp.zeros(2, state), dtype)
