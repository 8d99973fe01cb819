"""The studies, small: what each returns, a law that its numbers obey, a figure, and the command that runs them."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import data, models
from bptoolkit import fixed_point as fp
from bptoolkit.runs.fields import check_fields
from bptoolkit.types import Dataset, Rows

ROOT = Path(__file__).parents[2]
STUDIES = (ROOT / "experiments" / "studies").glob("*.py")
NAMES = sorted(path.stem for path in STUDIES if "\nQUESTION = " in path.read_text("utf-8"))
MNIST = ("associative", "mondeq")  # what they measure needs the images; their functions can be tested without
MEASURED = [pytest.param(name, marks=pytest.mark.mnist) if name in MNIST else name for name in NAMES]

TINY = {
    "parity": {"bits": (2,), "units": (3,), "seeds": 3, "updates": 150, "rate": 0.05, "settle_steps": 20},
    "learning_rate": {"rates": (0.5, 30.0), "seeds": 2, "looks": 2, "updates": 5, "settle_steps": 40},
    "hopfield_energy": {"units": 16, "gains": (0.5, 4.0), "dts": (0.25, 1.0), "seeds": 8, "shown": 4.0, "steps": 60},
    "completion": {
        "bits": 8,
        "hidden": 12,
        "patterns": (2,),
        "noises": (0.0, 0.5),
        "seeds": 2,
        "updates": 80,
        "draws": 4,
    },
    "gradients": {
        "units": 8,
        "radii": (0.9,),
        "seeds": 3,
        "tolerant": ("almeida_pineda", "gmres"),
        "tolerances": (1e-1, 1e-4),
        "series": ("neumann",),
        "terms": (1, 10, 40),
        "refinements": (0,),
    },
    "mondeq": {"units": 12, "batch": 32, "rate": 0.01, "epochs": 2, "seeds": 2, "goal": 0.3, "limit": 512},
    "associative": {
        "hidden": 16,
        "settle_steps": 20,
        "updates": 4,
        "looks": 1,
        "draws": 1,
        "seeds": 1,
        "krylov": 10,
    },
}
ANY = ("slope", "mean")  # numbers that may be negative
NULL = {  # what may have no number: an interval over one seed, a net that diverged
    "completion": ("recall", "whole", "nearest"),
    "gradients": ("error", "quartiles", "cosine"),
    "hopfield_energy": ("traces",),
    "mondeq": ("first", "last", "curves"),
    "associative": ("curves",),
}


@pytest.fixture(scope="module")
def module():
    """A study by its name."""
    sys.path.insert(0, str(ROOT))
    yield lambda name: importlib.import_module(f"experiments.studies.{name}")
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def measured(module):
    """A study's results at its tiny configuration; measured once."""
    known = {}

    def of(name):
        if name not in known:
            study = module(name)
            with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
                known[name] = study.measure(study.Config(**TINY[name]))
        return known[name]

    return of


def rows(results, **where):
    return [row for row in results["rows"] if all(row[name] == value for name, value in where.items())]


@pytest.mark.parametrize("name", MEASURED)
def test_results_are_plain_data_and_can_be_drawn(name, module, measured, tmp_path):
    kept = json.loads(json.dumps(measured(name), allow_nan=False))
    assert kept["rows"]
    module(name).draw(kept).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_a_field_of_a_frozen_config(name, module):
    study = module(name)
    config = study.Config()
    assert json.loads(json.dumps(dataclasses.asdict(config)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.key = 1
    assert study.QUESTION.endswith("?")


def without(results, names, within=False):
    """The results with null for every number under these names."""
    if isinstance(results, dict):
        return {name: without(entry, names, within or name in names) for name, entry in results.items()}
    if isinstance(results, list):
        return [without(entry, names, within) for entry in results]
    return None if within else results


@pytest.mark.parametrize("name", [case for case in MEASURED if getattr(case, "values", [case])[0] in NULL])
def test_what_has_no_number_can_be_drawn(name, module, measured, tmp_path):
    kept = without(json.loads(json.dumps(measured(name))), NULL[name])
    assert "null" in json.dumps(kept)
    module(name).draw(kept).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_held_to_a_range(name, module):
    """-1 is out of it for all but a few, which may be anything."""
    config = module(name).Config()
    check_fields(config)
    for field, value in dataclasses.asdict(config).items():
        wrong = (-1,) if isinstance(value, tuple) else -1
        if field not in ANY:
            with pytest.raises(ValueError, match=f"^{field} must be "):
                check_fields(dataclasses.replace(config, **{field: wrong}))


def test_parity_rows_are_all_patterns_with_their_product(module):
    study = module("parity")
    batch = study.parity(3)
    assert len({tuple(row) for row in np.asarray(batch.x).tolist()}) == 8
    np.testing.assert_array_equal(batch.target[:, 0], np.where((batch.x < 0).sum(axis=1) % 2 == 0, 1.0, -1.0))


def test_parity_counts_what_it_solved(measured):
    """Each net is near in size, each count agrees with the updates it is made of, and the interval holds the share."""
    results = measured("parity")
    assert len(results["rows"]) == 4
    for row in results["rows"]:
        assert row["solved"] == sum(update is not None for update in row["solved_at"])
        assert all(0 <= update < results["updates"] for update in row["solved_at"] if update is not None)
        assert row["interval"][0] <= row["solved"] / results["seeds"] <= row["interval"][1]
        assert abs(row["parameters"] - 22) <= 2  # 3 units: 9 + 6 + 3 recurrent and 3 + 1 of the readout
    assert any(row["solved"] for row in results["rows"])


def test_solved_for_good_is_after_the_last_update_above_the_bound(module):
    study = module("parity")
    assert study.since(np.array([False, True, False, True, True])) == 3
    assert study.since(np.array([True, True])) == 0
    assert study.since(np.array([True, False])) is None


def test_eigenvalues_along_training_begin_alike_at_every_rate(measured):
    """Before the first update the rates share their nets, whose step contracts by `gain`: max Re λ ≤ 0.5 there."""
    results = measured("learning_rate")
    slow, fast = rows(results, net="recurrent")
    assert slow["abscissa"]["high"][0] == fast["abscissa"]["high"][0] <= 0.5
    assert slow["abscissa"]["median"][1:] != fast["abscissa"]["median"][1:]
    assert len(slow["abscissa"]["median"]) == len(results["updates"]) == 3


def test_an_unstable_net_is_counted_so(module):
    """λ = 1.5 is unstable in continuous time; λ = −5 is stable there, but |1 − ½ · 6| = 2 for steps of ½."""
    study = module("learning_rate")
    values = np.array([[[0.5, 0.2], [1.5, 0.2], [-5.0, 0.2]]])  # (look, seed, pattern · unit)
    found = study.stability(0.5, values, np.array([[[True], [False], [False]]]))
    assert (found["unstable"], found["step_too_long"], found["unsettled"], found["settled_at_end"]) == (1, 1, 2, 1)


def test_eigenvalues_are_those_of_the_jacobian_and_nan_where_none_was_found(module):
    study = module("learning_rate")
    jacobians = np.full((1, 1, 1, 2, 2, 2), np.nan)
    jacobians[0, 0, 0, 0] = [[0.0, 1.0], [-1.0, 0.0]]
    values = study.eigenvalues(jacobians)[0, 0, 0]
    np.testing.assert_allclose(sorted(values[:2], key=np.imag), [-1j, 1j], atol=1e-12)
    assert np.isnan(values[2:]).all()


def test_energy_never_rises_within_the_bound_on_dt(measured):
    results = measured("hopfield_energy")
    assert all(row["rises_within_bound"] == 0 for row in results["rows"])
    assert all(row["within_bound"] == 8 for row in rows(results, gain=0.5))


def test_picard_may_lift_the_energy_and_end_in_a_cycle_where_the_bound_forbids_it(measured):
    """The negative control of the law: gain 4 asks for dt ≤ 2/(1 + 4) at worst."""
    results = measured("hopfield_energy")
    (picard,) = rows(results, gain=4.0, dt=1.0)
    assert picard["within_bound"] == 0
    assert picard["rises"] > 0
    assert picard["status"]["CYCLE"] > 0
    assert "CYCLE" not in rows(results, gain=0.5, dt=1.0)[0]["status"]


def test_a_rise_is_more_than_rounding(module):
    study = module("hopfield_energy")
    energy = np.array([[3.0, 2.0, 2.0 + 1e-15], [3.0, 2.0, 2.1]])
    assert study.risen(energy).tolist() == [False, True]


def test_halves_clamp_one_and_ask_for_the_other(module, key):
    study = module("completion")
    stored = jnp.array([[1.0, -1.0, 1.0, 1.0]])
    clean, wrong = jax.random.split(key)
    batch = study.halves(stored, 0.0, clean)
    np.testing.assert_array_equal(batch.x, [[1, -1, 0, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(batch.active, [[False, False, True, True], [True, True, False, False]])
    np.testing.assert_array_equal(study.halves(stored, 1.0, wrong).x, -batch.x)


def test_recall_is_perfect_without_noise_and_never_above_one(measured):
    """Two patterns of 8 bits are learnt; with half the clamped bits wrong they hold no information, in expectation."""
    results = measured("completion")
    clean, noisy = results["rows"]
    assert clean["recall"][0] == pytest.approx(1.0)
    assert noisy["recall"][0] < clean["recall"][0]
    for row in results["rows"]:
        assert 0 <= row["whole"][0] <= row["recall"][0] <= 1


def test_neumann_error_falls_with_its_terms_and_dense_is_exact(measured):
    results = measured("gradients")
    errors = [row["error"] for row in rows(results, adjoint="neumann")]
    assert errors == sorted(errors, reverse=True)
    assert rows(results, adjoint="dense")[0]["error"] < 1e-5


def test_exact_adjoints_come_within_ten_times_their_tolerance(measured):
    """λ and the gradient differ by a linear map of modest condition: an error of the tolerance stays of its order."""
    results = measured("gradients")
    for row in results["rows"]:
        if row["adjoint"] in ("almeida_pineda", "gmres"):
            assert row["error"] < 10 * row["knob"]
            assert row["converged"] == results["seeds"]


@pytest.mark.parametrize("name", ["unrolled", "truncated"])
def test_backpropagation_through_more_steps_comes_nearer_and_calls_nothing_converged(name, measured):
    found = rows(measured("gradients"), adjoint=name)
    assert [row["knob"] for row in found] == [row["products"] for row in found] == [1, 10, 40]
    errors = [row["error"] for row in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 < errors[0]
    assert not any(row["converged"] for row in found)


def test_the_drawn_net_has_its_fixed_point_and_its_spectral_radius(module):
    study = module("gradients")
    net, gradient = study.problem(study.Config(units=8), 0.99, 0)
    np.testing.assert_allclose(np.tanh(net["w"] @ net["z"] + net["b"]), net["z"], atol=1e-12)
    jacobian = (1 - net["z"] ** 2)[:, None] * net["w"]
    assert np.abs(np.linalg.eigvals(jacobian)).max() == pytest.approx(0.99)
    step = 1e-6  # along b: the last entries of the gradient, by moving the fixed point itself
    shift = np.linalg.solve(np.eye(8) - jacobian, (1 - net["z"] ** 2) * step)
    assert net["g"] @ shift == pytest.approx(step * gradient[-8:].sum(), rel=1e-9)


@pytest.mark.mnist
def test_a_monotone_net_always_settles_and_learns(measured):
    """m > 0 for all weights, so that Peaceman–Rachford converges; 512 answers by chance stay within 10 ± 6 · 1.3 %."""
    results = measured("mondeq")
    monotone, static = results["rows"]
    for share in ("unconverged", "backward_unconverged", "test_unconverged"):
        assert np.all(np.array(monotone["curves"][share]) == 0)
        assert share not in static["curves"]
    assert np.min(monotone["curves"]["settling_steps"]) >= 1
    assert min(row["last"]["accuracy"][0] for row in results["rows"]) > 0.18


@pytest.mark.mnist
def test_nets_on_mnist_are_of_one_size(measured):
    """A hidden unit of the static net has 784 + 10 weights and a bias: the nearest number of them is half that off."""
    monotone, static = measured("mondeq")["rows"]
    assert abs(monotone["parameters"] - static["parameters"]) <= 795 / 2


def test_a_net_that_diverged_keeps_its_loss(module, key):
    """Pixels overflow when divided by 1e-310; a static net lacks what tells of settling, not what is NaN."""
    study = module("mondeq")
    rows = Rows(jax.random.randint(key, (8, 28, 28), 0, 256).astype(jnp.uint8), jnp.arange(8, dtype=jnp.int32))
    config = study.Config(batch=4, epochs=1, seeds=1, deviation=1e-310)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        curves = study.learn(config, models.mlp(784, 2, 10), Dataset(rows, rows, classes=10, scale=255))
    assert set(curves) == {"loss", "accuracy"}
    assert np.isnan(curves["loss"]).all()


@pytest.mark.mnist
def test_images_are_read_with_mean_0_and_deviation_1(module):
    study = module("mondeq")
    images = data.mnist()
    x = study.read(study.Config(), images, images.train).x
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3


def test_the_goal_is_reached_in_the_first_epoch_that_meets_it(module):
    study = module("mondeq")
    assert study.reached(np.array([0.1, 0.5, 0.4, 0.6]), 0.5) == 2
    assert study.reached(np.array([0.1, 0.2]), 0.5) is None


@pytest.fixture
def small_memory(module, key):
    """The study, a memory of 6 pixels with 4 hidden units, weights that are not small, and an image."""
    study = module("associative")
    first, second = jax.random.split(key)
    config = study.Config(hidden=4, scale=0.5)
    cell = study.memory(config, 6)
    return study, config, cell, cell.init(first), jax.random.bernoulli(second, 0.5, (6,)).astype(float)


def test_a_memory_makes_the_update_of_the_whole_clamped_net(small_memory):
    """h ← W σ(h/2) over all 16 units with symmetric W and no self-connections, the first 6 put back to the image."""
    _, _, cell, params, x = small_memory
    h = np.linspace(-1, 1, 10)
    w = np.zeros((16, 16))
    w[6:, 6:] = params["w"] + params["w"].T
    w[:6, 6:], w[6:, :6] = 2 * params["u"], 2 * params["u"].T
    np.fill_diagonal(w, 0)
    whole = w @ (1 / (1 + np.exp(-np.concatenate([x, h]) / 2)))
    np.testing.assert_allclose(cell.step(params, x, h), whole[6:], atol=1e-12)
    np.testing.assert_array_equal(cell.readout(params, h), h[-6:])


def test_the_radius_is_that_of_the_dense_jacobian(small_memory):
    study, config, cell, params, x = small_memory
    model = models.equilibrium(cell, study.routes(config)["exact"])
    z = fp.solve(lambda h: cell.step(params, x, h), jnp.zeros(10), fp.newton_krylov()).value
    eigenvalues = np.linalg.eigvals(jax.jacfwd(lambda h: cell.step(params, x, h))(z))
    assert float(study.radius(config, model, params, x)) == pytest.approx(np.abs(eigenvalues).max(), rel=1e-3)


def test_half_of_the_on_pixels_and_no_others_are_switched_off(small_memory):
    study, config, *_ = small_memory
    x = jnp.array([[1.0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0]])
    asked = study.corrupt(config, x, jax.random.key(1))
    assert np.all(np.asarray(asked) <= np.asarray(x))
    np.testing.assert_array_equal((x - asked).sum(axis=1), [2, 1])  # of 4 and of 3


@pytest.mark.mnist
def test_a_memory_starts_at_the_radius_of_a_random_symmetric_matrix(module, measured):
    """Wigner: the largest |λ| of a symmetric matrix with deviation √2 s is 2 √n √2 s, and σ′/2 is 1/8 where h ≈ 0."""
    config = module("associative").Config(**TINY["associative"])
    expected = config.scale * np.sqrt(2 * (config.hidden + 784)) / 4
    for row in measured("associative")["rows"]:
        np.testing.assert_allclose(np.array(row["curves"]["radius"])[:, 0], expected, rtol=0.05)


@pytest.mark.mnist
def test_routes_agree_but_for_the_one_step_gradient(measured):
    """ρ < 0.6: 20 terms leave 0.6²¹ ≈ 2e-5, an odd pixel a per cent. The control is off by ρ."""
    for row in measured("associative")["rows"]:
        assert np.max(row["curves"]["radius"]) < 0.6
        assert np.max(row["curves"]["unconverged"]) == 0
        last = np.array(row["curves"]["gradient_error"])[:, -1]
        assert np.all(last > 0.1) if row["route"] == "one step" else np.all(last < 0.05)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs scripts/study.py with a cache of compiled programs of its own."""
    cache = tmp_path_factory.mktemp("cache")

    def call(*arguments, cwd):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "COLUMNS": "200"}
        line = [sys.executable, str(ROOT / "scripts" / "study.py"), *map(str, arguments)]
        return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    return call


def test_list_names_every_study_with_its_question(command, tmp_path):
    ran = command("--list", cwd=tmp_path)
    assert ran.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines())
    assert sorted(lines) == NAMES
    assert all(question.endswith("?") for question in lines.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["partiy"], "Nearest: parity"),
        (["parity", "--seeds", "-1"], "seeds must be a whole number of at least 1, got -1"),
    ],
)
def test_wrong_words_get_a_sentence_and_leave_nothing(command, tmp_path, arguments, sentence):
    ran = command(*arguments, "--out", tmp_path, cwd=tmp_path)
    assert ran.returncode == 2
    assert sentence in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_study_leaves_its_numbers_and_its_picture(command, tmp_path):
    flags = ["--units", "8", "--gains", "0.5", "--dts", "0.5", "--shown", "0.5", "--seeds", "3", "--steps", "5"]
    ran = command("hopfield_energy", *flags, "--out", tmp_path / "kept", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"hopfield_energy.json", "hopfield_energy.png"}
    record = json.loads((tmp_path / "kept" / "hopfield_energy.json").read_text("utf-8"))
    assert record["config"]["gains"] == [0.5]
    assert record["results"]["rows"][0]["rises"] == 0
    assert set(record["made"]["packages"]) >= {"jax", "optax"}
    assert record["seconds"] > 0


def test_one_seed_leaves_its_means_and_null_for_their_intervals(command, tmp_path):
    flags = ["--bits", "4", "--hidden", "4", "--patterns", "2", "--noises", "0", "--updates", "2", "--draws", "2"]
    ran = command("completion", *flags, "--seeds", "1", "--out", tmp_path, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads((tmp_path / "completion.json").read_text("utf-8"))["results"]["rows"]
    mean, half = row["recall"]
    assert 0 <= mean <= 1
    assert half is None
    assert (tmp_path / "completion.png").stat().st_size > 5_000
