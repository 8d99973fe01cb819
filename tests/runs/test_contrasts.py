"""One net against another inside a run: paired over seeds, false discoveries over all; and the script."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from bptoolkit import continual as cl
from bptoolkit.runs import RunError, contrasts, finish, open_run, save_results, save_summary
from bptoolkit.runs.figures.effects import effects

ROOT = Path(__file__).parents[2]
MEASURE = "average_accuracy"


def row_of(rows, strategy="ewc", scenario="class"):
    return next(row for row in rows if (row["strategy"], row["scenario"]) == (strategy, scenario))


def accuracies(results, net, strategy="ewc"):
    R = results["accuracy"].sel(net=net, strategy=strategy, scenario="class").values[:, 1:].astype(float)
    return cl.average_accuracy(R)


def test_a_contrast_is_the_paired_t_test_within_the_run(results):
    (rows,) = contrasts([results], "static")
    one, other = (accuracies(results, net) for net in ("recurrent", "static"))
    found = row_of(rows)
    low, high = scipy.stats.ttest_rel(one, other).confidence_interval()
    half = found[MEASURE]["half_width"]
    assert found["net"] == "recurrent"
    assert found[MEASURE]["difference"] + np.array([-half, half]) == pytest.approx([low, high])
    assert found["base"][MEASURE] == pytest.approx(other.mean())
    assert found[MEASURE]["n"] == 4
    assert "too few seeds" in found[MEASURE]["reason"]


def test_what_was_not_run_is_null_with_its_reason(results):
    (rows,) = contrasts([results], "static")
    missing = row_of(rows, "joint", "domain")[MEASURE]
    assert (missing["difference"], missing["p"], missing["q"], missing["n"]) == (None, None, None, 0)
    assert "no seed is finished in both" in missing["reason"]


def test_q_is_the_smallest_rate_of_false_discoveries_at_which_a_difference_counts(make):
    """By definition, over the rows of all runs: q_i = min over k ≥ rank i of p_(k) m / k."""
    runs = [make(seeds=8, draw=draw) for draw in (0, 1)]
    rows = [row for own in contrasts(runs, "static") for row in own]
    known = [row["learning_accuracy"] for row in rows if row["learning_accuracy"]["p"] is not None]
    m = len(known)
    assert m == 2 * (2 * 4 - 1)
    p = sorted(one["p"] for one in known)
    for one in known:
        wanted = min(p[k - 1] * m / k for k in range(1, m + 1) if p[k - 1] >= one["p"])
        assert one["q"] == pytest.approx(min(1, wanted))


def test_a_net_that_is_missing_is_told(results):
    with pytest.raises(RunError, match="needs that net in every run, got static, recurrent"):
        contrasts([results], "one-step")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("answer")


def folder_of(path, results, dataset, experiment="experiments.study"):
    config = {"experiment": experiment, "config": {"dataset": dataset, "rate": 0.1}, "seeds": 4, "key": 0}
    folder = open_run(path, config).folder
    save_results(folder, results)
    save_summary(folder, results)
    finish(folder)
    return folder


def test_the_script_writes_differences_results_and_a_figure(script, make, tmp_path, capsys):
    folders = [folder_of(tmp_path / name, make(seeds=8), name) for name in ("mnist", "fashion")]
    assert script.main(tuple(folders), out=tmp_path / "out") == 0
    kept = json.loads((tmp_path / "out" / "study.json").read_text())
    assert list(kept["runs"]) == ["mnist", "fashion"]
    one = kept["runs"]["mnist"]
    assert one["config"]["config"]["dataset"] == "mnist"
    assert {"summary", "contrasts", "made"} <= set(one)
    assert (tmp_path / "out" / "study.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / f"study.{kind}") for kind in ("json", "png")]


def test_panels_of_one_scenario_have_one_scale(make):
    """Only the lowest is numbered, so the same place must be the same difference; scenarios differ."""
    rows = contrasts([make(seeds=8), make(seeds=8, draw=1)], "static")
    figure = effects(dict(zip("ab", rows, strict=True)), "static")
    limits = [axis.get_xlim() for axis in figure.axes]
    assert len(limits) == 4
    assert limits[:2] == limits[2:]
    assert limits[0] != limits[1]
    assert all(low < 0 < high for low, high in limits)


def test_the_script_refuses_what_it_cannot_answer(script, make, tmp_path, capsys):
    same = [folder_of(tmp_path / name, make(), "mnist") for name in "ab"]
    other = folder_of(tmp_path / "other", make(), "mnist", "experiments.other")
    for folders, sentence in (
        ((), "at least one run folder, got none"),
        (same, "must differ in a field"),
        ([same[0], other], "must be of one experiment"),
        ([tmp_path / "none"], "config.json"),
    ):
        assert script.main(tuple(folders), out=tmp_path / "out") == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
