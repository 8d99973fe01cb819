"""Numbers that strategies are given: which may be traced, and what is said of those that cannot be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.models import mlp

RULE = learning.backprop(mlp(4, 5, 6))
SHARES = {
    "xdg": lambda value: cl.xdg(value),
    "packnet's keep": lambda value: cl.packnet(value),
    "packnet's retrain": lambda value: cl.packnet(retrain=value),
    "continual backprop's decay": lambda value: cl.continual_backprop(0.5, maturity=1, decay=value),
}


@pytest.mark.parametrize("kind", SHARES)
def test_a_traced_share_does_what_a_written_one_does(kind, clouds, drive):
    """And another one does something else."""
    stream = clouds("task")

    def end(value):
        driven = drive(SHARES[kind](value)(RULE), stream, steps=6)
        leaves = jax.tree.leaves(driven.stage(driven.begin(), 0).progress)
        return jnp.concatenate([leaf.ravel() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)])

    traced = jax.jit(end)
    np.testing.assert_allclose(traced(0.5), end(0.5), atol=1e-12)
    assert jnp.max(jnp.abs(traced(0.5) - traced(0.9))) > 1e-6


@pytest.mark.parametrize(("share", "units", "silent"), [(0.29, 100, 29), (0.5, 5, 2), (0.9, 400, 360), (0.99, 10, 9)])
def test_a_share_of_units_is_a_whole_number_of_them(share, units, silent, clouds, drive):
    """0.29 · 100 is 28.999999999999996 in float64: still 29."""
    for read in (float, jnp.float32):
        driven = drive(cl.xdg(read(share))(learning.backprop(mlp(4, units, 6))), clouds("task"))
        (gates,) = driven.begin().memory.gates
        np.testing.assert_array_equal(jnp.sum(gates == 0, axis=1), silent)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: cl.replay(n),
        lambda n: cl.ogd(n),
        lambda n: cl.redo(every=n),
        lambda n: cl.rwalk(1.0, every=n),
        lambda n: cl.hat(cycle=n),
        lambda n: cl.continual_backprop(maturity=n),
    ],
    ids=["replay", "ogd", "redo", "rwalk", "hat", "continual backprop"],
)
def test_a_whole_number_is_one_and_is_not_traced(build):
    for wrong in (2.5, float("nan"), True, "2", -1):
        with pytest.raises(ValueError, match=r"must be (a whole number, got|at least [01], got)"):
            build(wrong)
    with pytest.raises(
        ValueError, match=r"got a number of hyper\. Whole numbers shape the program: make an experiment"
    ):
        jax.eval_shape(lambda n: build(n) and 0.0, 2)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.ewc(np.complex64(1 + 2j)), "strength must be a real number"),
        (lambda: cl.continual_backprop(decay=1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: cl.packnet(RULE), "keep must be a real number, got a learner"),
        (lambda: cl.xdg(RULE), "share must be a real number, got a learner"),
        (lambda: cl.ogd(RULE), "per_task must be a whole number, got a learner"),
        (lambda: cl.gdumb(2, steps=1, optimizer=1e-3), "optimizer must be one of optax"),
        (lambda: cl.generative_replay(optimizer=1e-3), "optimizer must be one of optax"),
        (lambda: cl.generative_replay(hidden=400), "hidden must be a tuple of whole numbers, got 400"),
        (lambda: cl.generative_replay(hidden=(400, 0)), "hidden must be at least 1, got 0"),
        (lambda: cl.convert_strength(-1.0, cl.Convention(), cl.Convention(), 10), "strength must be at least 0"),
        (lambda: cl.convert_strength(1.0, cl.Convention(), cl.Convention(), 2.5), "rows must be a whole number"),
    ],
)
def test_what_is_no_such_number_is_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


def test_a_strength_beyond_the_floats_in_use_is_refused():
    """1e39 is a float64, and infinite as float32."""
    with jax.enable_x64(False), pytest.raises(ValueError, match="strength must be at least 0, got 1e"):
        cl.ewc(1e39)
    cl.ewc(1e39)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"stream": "split"}, r"stream must be a Stream, got str. Make one of a data set: split\(dataset, 2\)"),
        ({"evaluate_every": 2.5}, "evaluate_every must be a whole number, got 2.5"),
        ({"probe": "a"}, "probe must be a whole number, got 'a'"),
        ({"diagnose": 2.5}, "diagnose must be a whole number, got 2.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
    ],
)
def test_an_experiment_says_at_once_what_it_cannot_be_made_of(given, sentence, clouds):
    make = partial(cl.Experiment, stream=clouds(), learner=RULE, optimizer=optax.sgd(0.1), steps=4)
    with pytest.raises(ValueError, match=sentence):
        make(**given)
    assert make(steps=np.int64(4)).steps == 4


@pytest.mark.parametrize("key", [0, None, jax.random.split(jax.random.key(0)), jax.random.PRNGKey(0)])
def test_a_run_needs_one_typed_key(key, clouds):
    with pytest.raises(ValueError, match=r"key must be one typed key, as jax.random.key\(0\) makes it, got"):
        cl.run(cl.Experiment(clouds(), RULE, optax.sgd(0.1), steps=4), key, seeds=2)


@pytest.mark.parametrize(("part", "name"), [("train", "training"), ("test", "test")])
def test_a_task_that_is_dealt_no_rows_is_refused_before_training(part, name, clouds):
    stream = clouds()

    def draw(key):
        indices = stream.draw(key)
        view = getattr(indices, part)
        return indices._replace(**{part: view._replace(count=view.count.at[1].set(0))})

    experiment = cl.Experiment(stream._replace(draw=draw), RULE, optax.sgd(0.1), steps=4)
    with pytest.raises(ValueError, match=f"Every task must have {name} rows, got none in task 2 of seed 3"):
        cl.run(experiment, jax.random.key(0), seeds=[3, 5])
