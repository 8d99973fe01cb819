"""What the benchmark and the study of fixed points measure with: their problems, references and counts."""

import importlib
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def scripts():
    """The scripts as modules; they find each other beside them."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def problem(scripts):
    problems = scripts("fixed_point_problems")
    return problems.make(problems.disc, 0.8, 6, 5)


def test_the_reference_gradient_is_that_of_backpropagation_through_time(scripts, problem):
    peers = scripts("fixed_point_peers")
    through = peers.through(problem, 800).call()
    chex.assert_trees_all_close(through, problem.gradient.astype(np.float32), rtol=1e-5, atol=1e-5)


def test_a_convolution_and_its_matrix_have_one_gradient(scripts):
    """The reference knows the matrix alone, in which each entry of the kernel stands many times."""
    problem = scripts("fixed_point_problems").convolutional(3, 2, 2, 0.7)
    through = scripts("fixed_point_peers").through(problem, 300).call()
    chex.assert_trees_all_close(through, problem.gradient.astype(np.float32), rtol=1e-5, atol=1e-5)
    w, z = jnp.asarray(problem.w), jnp.asarray(problem.x)
    alone = jax.vmap(problem.step, (None, 0, None))(w, z, z[0])
    chex.assert_trees_all_close(alone, problem.batched(w, z, z[0]), atol=1e-12)


def test_every_configuration_is_taken_at_the_loosest_tolerance_that_is_accurate(scripts, problem):
    bench = scripts("bench_fixed_point")
    make = dict(bench.ours(problem))["bptoolkit picard + almeida_pineda"]
    gradient, row = bench.loosest(make, problem.gradient)
    assert row["error"] <= bench.ACCURATE
    assert len(row["steps"]) == 2
    looser = make(bench.TOLERANCES[bench.TOLERANCES.index(row["tolerance"]) - 1]).call()
    assert np.linalg.norm(np.asarray(looser) - problem.gradient) > bench.ACCURATE * np.linalg.norm(problem.gradient)
    assert min(bench.timed(gradient.call)) >= 0


def test_a_method_that_is_never_accurate_is_said_to_fail(scripts, problem):
    bench = scripts("bench_fixed_point")
    still = scripts("fixed_point_peers").Gradient(lambda: jnp.zeros_like(problem.w))
    found, row = bench.loosest(lambda _: still, problem.gradient)
    assert found is None
    assert "error 1.0e+00" in row["failed"]


def test_evaluations_are_counted_forward_and_backward(scripts, problem):
    """Seven steps unrolled, under a batch of six: seven products forward, and seven backward."""
    peers = scripts("fixed_point_peers")
    counter = peers.Counter(problem)
    assert counter.count(peers.through(counter.problem, 7)) == 14


@pytest.mark.parametrize(("other", "there"), [(2.1, "reached on symmetric; missed on none"), (1.9, "reached on none")])
def test_the_table_says_which_aims_are_reached(scripts, other, there):
    row = lambda ms: {"ms": ms, "cpu_ms": ms, "compile_cpu_seconds": ms, "bytes": 1e6, "evaluations": 9}
    rows = {"bptoolkit default": row(1.0), "jaxopt picard": row(other), "products": {"ms": 0.5, "steps": [1, 1]}}
    report = {"problems": {"symmetric": {"batch": 2, "state": [3], "radius": 0.5, "load": [0.0], "rows": rows}}}
    told = scripts("fixed_point_table").markdown(report)
    assert f"{there}" in told.splitlines()[4]
    assert "1.5 times the bare products: reached on none" in told
    assert f"| 1.0 | {other} | – | – | – | {other:.2f} |" in told


@pytest.mark.parametrize("kind", ["symmetric", "random", "rotations", "tanh", "turning", "nan", "jordan"])
def test_maps_have_the_fixed_point_that_is_claimed(scripts, kind):
    study = scripts("study_stopping")
    f, exact = study.drawn(kind, jax.random.key(4))
    chex.assert_trees_all_close(f(exact), exact, atol=1e-12)
    assert jnp.linalg.norm(f(exact + 0.1) - exact - 0.1) > 1e-3


def test_a_method_that_always_calls_itself_converged_is_counted_wrong(scripts):
    """Negative control for the study's counts."""
    study = scripts("study_stopping")
    liar = study.judged("symmetric", lambda f, z0, size: (z0, jnp.ones((), bool)), None, 3)
    assert study.shares(liar)["wrong_10"] == 1.0
    assert study.shares(liar)["converged"] == 3
