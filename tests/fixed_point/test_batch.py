"""Samples of a batch end one by one, though their loop has one predicate and selects no history."""

import chex
import jax
import jax.extend
import jax.numpy as jnp
import optax
import pytest

from bptoolkit.fixed_point import Status, anderson, broyden, chebyshev, gmres, picard, relaxation, solve
from bptoolkit.fixed_point.batch import anyone, if_anyone, masking
from tests.fixed_point.methods import assert_apart_by_rounding

GAINS = jnp.array([0.1, 0.95, 0.5])
SOLVERS = {
    "picard": picard(),
    "heavy ball": optax.sgd(0.5, momentum=0.3),
    "anderson": anderson(),
    "broyden": broyden(),
    "chebyshev": chebyshev(),
}


def settle(gain, solver, every=1):
    return solve(lambda z: jnp.tanh(gain * z[::-1] + 0.1 * jnp.arange(4.0)), jnp.zeros(4), solver, every=every)


def loops(jaxpr):
    """All while loops of a program, the inner ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from loops(inner)


def selects(jaxpr):
    """The shapes that are selected anywhere in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "select_n":
            yield equation.outvars[0].aval.shape
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from selects(inner)


def test_anyone_asks_all_batches_around_it():
    flags = jnp.array([[False, False], [False, True], [False, False]])
    assert jax.vmap(jax.vmap(anyone))(flags).all()
    assert not jax.vmap(anyone)(flags[0]).any()
    chex.assert_trees_all_equal(jax.vmap(anyone, out_axes=None)(flags[1]), jnp.array(True))


def test_what_nobody_of_a_batch_needs_is_not_computed():
    """It stays a branch under `vmap`: with a flag of its own for each sample both sides would be computed."""
    more = lambda needed, x: if_anyone(needed, lambda x: x + 1, x)
    batched, x = jax.vmap(more), jnp.zeros(3)
    chex.assert_trees_all_equal(batched(jnp.array([False, True, False]), x), x + 1)
    chex.assert_trees_all_equal(batched(jnp.array([False, False, False]), x), x)
    names = lambda f: [equation.primitive.name for equation in jax.make_jaxpr(f)(jnp.zeros(3, bool), x).eqns]
    assert "cond" in names(batched)
    assert "cond" not in names(jax.vmap(lambda needed, x: jax.lax.cond(needed, lambda x: x + 1, lambda x: x, x)))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("every", [1, 3])
def test_each_sample_of_a_batch_is_as_alone_its_memory_too(name, every):
    """Only the count of a ring buffer goes on, so that all write to the same row."""
    together = jax.vmap(lambda gain: settle(gain, SOLVERS[name], every))(GAINS)
    assert len(set(together.steps.tolist())) > 1
    for i, gain in enumerate(GAINS):
        alone = settle(gain, SOLVERS[name], every)
        here = jax.tree.map(lambda leaf, i=i: leaf[i] if leaf.ndim else leaf, together)
        assert_apart_by_rounding(here, alone)
        arrays = lambda memory: [leaf for leaf in jax.tree.leaves(memory) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        chex.assert_trees_all_close(arrays(meant(here.memory)), arrays(meant(alone.memory)), rtol=1e-9, atol=1e-12)


def meant(memory):
    """Anderson's residuals with their sizes: those at the level of rounding have none but random directions."""
    if not hasattr(memory, "gram"):
        return memory
    sizes = memory.sizes[:, None]
    return memory._replace(r=sizes * memory.r, gram=sizes * memory.gram * sizes.T)


def test_no_history_is_selected():
    """In the loop of a batch, the largest select is of one state, 3 × 4; a history would be 3 × 5 × 4."""
    program = jax.make_jaxpr(jax.vmap(lambda gain: settle(gain, anderson(5))))(GAINS).jaxpr
    (loop,) = loops(program)
    shapes = list(selects(loop.params["body_jaxpr"].jaxpr))
    assert (3, 4) in shapes
    assert (3, 5, 4) not in shapes
    assert loop.params["cond_jaxpr"].out_avals[0].shape == ()


def test_a_solver_that_does_not_see_to_it_has_its_memory_selected():
    plain = masking(lambda r, memory, z, **extra: (r, memory + 1))
    chex.assert_trees_all_equal(plain(0.0, jnp.array(3), 0.0, live=jnp.array(False))[1], jnp.array(3))
    chex.assert_trees_all_equal(plain(0.0, jnp.array(3), 0.0, live=jnp.array(True))[1], jnp.array(4))


def test_the_loop_ends_when_the_last_sample_has():
    """The control: a loop that ran on would show in a sample that overflows beside those that settled."""
    gains = jnp.array([0.5, 3.0])
    ended = jax.vmap(lambda gain: solve(lambda z: gain * z + 1, jnp.zeros(1), relaxation(1.0)))(gains)
    assert ended.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    assert jnp.isfinite(ended.value).all()


def test_krylov_histories_are_not_selected_either():
    program = jax.make_jaxpr(jax.vmap(lambda gain: gmres(5)(lambda v: gain * v[::-1], jnp.arange(4.0))))(GAINS).jaxpr
    for loop in loops(program):
        assert (3, 5, 4) not in list(selects(loop.params["body_jaxpr"].jaxpr))
        assert loop.params["cond_jaxpr"].out_avals[0].shape == ()
