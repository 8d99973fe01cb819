"""Two runs side by side: no bit escapes, no time counts."""

import json

import numpy as np
import pytest

from bptoolkit.runs import RunError, differences, finish, open_run, save_results, surroundings
from bptoolkit.runs.weights import save_weights

CONFIG = {"experiment": "tests.compare", "config": {}, "seeds": 2, "key": 0}
WEIGHTS = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def folder(tmp_path, results):
    """Make a run folder that holds these results and weights."""

    def make(name, results=results, weights=WEIGHTS, config=CONFIG):
        run = open_run(tmp_path / name, config).folder
        save_results(run, results)
        save_weights(run / "params" / "static" / "naive" / "class.npz", weights)
        finish(run)
        return run

    return make


def test_the_same_is_the_same_whatever_the_clock_says(folder, results):
    later = results.assign({name: results[name] + 1 for name in ("seconds", "compile_seconds", "ms_per_1000")})
    assert differences(folder("one"), folder("other", later)) == []


def test_one_bit_of_one_value_is_told_with_its_size(folder, results):
    accuracy = results["accuracy"].copy(deep=True)
    value = accuracy.values[0, 0, 0, 0, 0, 0]
    accuracy.values[0, 0, 0, 0, 0, 0] = np.nextafter(value, np.float32(2))
    gap = float(accuracy.values[0, 0, 0, 0, 0, 0]) - float(value)
    expected = f"accuracy differs in 1 of {accuracy.size} values, by at most {gap:.3g}."
    assert differences(folder("one"), folder("other", results.assign(accuracy=accuracy))) == [expected]


def test_a_missing_variable_another_shape_and_another_dtype_are_told(folder, results):
    one, cases = folder("one"), {}
    cases["gone"] = results.drop_vars("loss")
    cases["narrow"] = results.assign(loss=results["loss"].astype(np.float16))
    cases["fewer"] = results.isel(seed=slice(3))
    told = {name: differences(one, folder(name, changed)) for name, changed in cases.items()}
    assert told["gone"] == ["loss is in the first only."]
    assert told["narrow"] == [
        "loss is float32(2, 4, 2, 4, 5, 8) in the first, float16(2, 4, 2, 4, 5, 8) in the second."
    ]
    assert any(line.startswith("seed is int64(4,) in the first, int64(3,)") for line in told["fewer"])


def test_zero_and_minus_zero_are_different_bits(folder):
    zeros = {"w": np.zeros((2, 3), np.float32)}
    told = differences(folder("one", weights=zeros), folder("other", weights={"w": -zeros["w"]}))
    assert told == ["Weights static/naive/class['w'] differs in 6 of 6 values, by at most 0."]


def test_nan_in_the_same_place_is_the_same(folder):
    nan = {"w": np.full((2, 3), np.nan)}
    assert differences(folder("one", weights=nan), folder("other", weights=nan)) == []


def test_other_weights_and_another_configuration_are_told(folder):
    one = folder("one")
    other = folder("other", weights={"v": WEIGHTS["w"] + 1}, config=CONFIG | {"key": 1})
    assert differences(one, other) == [
        "The configurations differ.",
        "Weights static/naive/class['w'] is in the first only.",
        "Weights static/naive/class['v'] is in the second only.",
    ]


def test_a_run_without_weights_cannot_be_compared(folder, results, tmp_path):
    bare = open_run(tmp_path / "bare", CONFIG).folder
    save_results(bare, results)
    with pytest.raises(RunError, match="holds no parameters"):
        differences(folder("one"), bare)


def test_what_the_surroundings_do_not_share_is_told(folder):
    one, other = folder("one"), folder("other")
    assert surroundings(one, other) == []
    path = other / "environment.json"
    told = json.loads(path.read_text())
    told["packages"]["jax"], told["devices"], told["machine"]["load"] = "0.1", ["cpu:0", "cpu:1"], [9, 9, 9]
    path.write_text(json.dumps(told))
    lines = surroundings(one, other)
    assert len(lines) == 2
    assert lines[0].endswith("→ cpu:0, cpu:1")
    assert lines[1].endswith("→ 0.1")
