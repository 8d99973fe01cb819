"""Every solver on maps without a fixed point, every exact adjoint on systems without a solution: none is satisfied."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.fixed_point import Status, Stop, implicit, picard, solve, value_and_grad
from tests.fixed_point.methods import SOLVERS, adjoints

STOP = Stop(rtol=1e-6, max_steps=300)
MAPS = {
    "halves": lambda z: 0.5 * z + 1,  # the control: 2
    "moves on": lambda z: z + 1,
    "grows": lambda z: jnp.square(z) + 1,  # no real fixed point
    "jumps": lambda z: jnp.where(z > 0, -1.0, 1.0),  # between two values, for ever
    "undefined": lambda z: jnp.sqrt(-1 - jnp.square(z)),
    "infinite": lambda z: 1 / (0 * z),
}
FAILING = list(MAPS)[1:]
ENDED = {  # how plain iteration ends on each
    "halves": Status.CONVERGED,
    "moves on": Status.SINGULAR,
    "grows": Status.DIVERGED,
    "jumps": Status.CYCLE,
    "undefined": Status.NONFINITE,
    "infinite": Status.NONFINITE,
}


def ended(solver):
    """The solutions on all maps, one batch of them."""
    which = lambda i, z: jax.lax.switch(i, list(MAPS.values()), z)
    run = jax.jit(jax.vmap(lambda i: solve(lambda z: which(i, z), jnp.zeros(3), solver, STOP)))
    return run(jnp.arange(len(MAPS)))


@pytest.mark.parametrize("name", SOLVERS)
def test_no_solver_calls_what_has_no_fixed_point_converged(name):
    """And the map beside them in the batch, which has one, is settled."""
    solutions = ended(SOLVERS[name])
    statuses = dict(zip(MAPS, map(Status, solutions.status.tolist()), strict=True))
    assert {kind: Status.CONVERGED for kind in FAILING if statuses[kind] == Status.CONVERGED} == {}
    assert statuses["halves"] == Status.CONVERGED
    chex.assert_trees_all_close(solutions.value[0], jnp.full(3, 2.0), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("gain", "current", "start"), [(0.5, 0, 1), (0.5, 1e-17, 0), (0.5, 1e-17, 1), (0.9, 1, 0)])
def test_what_has_a_fixed_point_is_not_called_singular(dtype, gain, current, start):
    """Not where it is so small that norms underflow, nor where a narrow dtype rounds much.  Broyden's method, as it is
    one whose iterates jump."""
    f = lambda z: jnp.asarray(gain, dtype) * z + jnp.asarray(current, dtype)
    for solver in (picard(), SOLVERS["broyden"]):
        solution = solve(f, jnp.full(3, start, dtype), solver, Stop(max_steps=500))
        assert solution.status == Status.CONVERGED


def test_a_residual_that_grows_before_it_falls_is_seen_beside_a_larger_state():
    """z = tanh 2z + 1/1000 from 0, next to a fixed point that is left: at first bfloat16 would lose it beside z."""
    ended = solve(lambda z: jnp.tanh(2 * z) + jnp.asarray(1e-3, z.dtype), jnp.zeros(3, jnp.bfloat16))
    assert ended.status == Status.CONVERGED
    assert jnp.abs(ended.value.astype(float) - 0.958).max() < 0.02


def test_plain_iteration_says_what_went_wrong():
    assert dict(zip(MAPS, map(Status, ended(picard()).status.tolist()), strict=True)) == ENDED


J = {
    "contracts": np.diag([0.5, 0.2, -0.3]),
    "singular": np.diag([1.0, 0.2, -0.3]),  # I − Jᵀ has no inverse, and the gradient is not in its range
    "expands": np.diag([2.0, 0.2, -3.0]),  # solvable, not by relaxation
}


@pytest.mark.parametrize("name", adjoints(STOP))
def test_no_adjoint_calls_a_system_without_a_solution_converged(name):
    """0 is a fixed point of z = Jz for any J, so the forward way is settled and only the way back can fail.  What is
    called converged is so: it is the solution."""
    run = value_and_grad(lambda args, z: z.sum(), implicit(picard(), adjoints(STOP)[name], STOP))
    settle = lambda j: run(lambda j, z: j @ z, j, jnp.zeros(3))[2:]
    forward, backward = jax.jit(jax.vmap(settle))(jnp.stack([jnp.asarray(j) for j in J.values()]))
    assert (forward.status == Status.CONVERGED).all()
    good, singular, expanding = backward.status.tolist()
    assert good == Status.CONVERGED
    assert singular != Status.CONVERGED
    known = 1 / (1 - jnp.diag(J["expands"]))
    assert expanding != Status.CONVERGED or jnp.allclose(backward.value[2], known, rtol=1e-4)
    chex.assert_trees_all_close(backward.value[0], 1 / (1 - jnp.diag(J["contracts"])), rtol=1e-4)


@pytest.mark.parametrize("name", ["almeida_pineda(picard)", "bicgstab", "cg_normal", "dense", "exact", "gmres"])
def test_no_adjoint_calls_a_slope_that_is_not_a_number_converged(name):
    """√|z| settles at its fixed point 0, where it has no slope."""
    run = value_and_grad(lambda args, z: z.sum(), implicit(picard(), adjoints(STOP)[name], STOP))
    _, _, forward, backward = jax.jit(lambda a: run(lambda a, z: a * jnp.sqrt(jnp.abs(z)), a, jnp.zeros(3)))(1.0)
    assert forward.status == Status.CONVERGED
    assert backward.status != Status.CONVERGED
