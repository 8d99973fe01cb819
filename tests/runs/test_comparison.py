"""Paired differences against scipy's paired t-test; pairs that are missing are said to be."""

import json
import re

import numpy as np
import pytest
import scipy.stats
import xarray

from bptoolkit.continual import metrics
from bptoolkit.runs import RunError, finish, open_run, save_results, write_comparison
from bptoolkit.runs.paired import compare, load_sides, settings_that_differ

CONFIG = {"experiment": "experiments.split_digits", "config": {"rate": 0.001}, "seeds": 4, "key": 0}


def folder_of(path, results, **changed):
    folder = open_run(path, CONFIG | changed).folder
    save_results(folder, results)
    finish(folder)
    return folder


@pytest.fixture
def results(make):
    """Of two runs, different draws of the same seeds; what was not run is left out."""
    return [make(tasks=3, scenarios=["class"], draw=draw).sel(strategy=["naive", "ewc"]) for draw in (0, 1)]


def row_of(found, net="recurrent", strategy="ewc", runs="B − A"):
    wanted = (net, strategy, runs)
    return next(row for row in found["rows"] if (row["net"], row["strategy"], row["runs"]) == wanted)


def R(results, net="recurrent", strategy="ewc"):
    return results["accuracy"].sel(net=net, strategy=strategy, scenario="class").values[:, 1:].astype(float)


def test_a_difference_and_its_interval_are_those_of_the_paired_t_test(tmp_path, results):
    folders = [folder_of(tmp_path / name, each) for name, each in zip("ab", results, strict=True)]
    found = row_of(compare(load_sides(folders)))
    for name in ("average_accuracy", "forgetting", "backward_transfer", "learning_accuracy"):
        one, two = (getattr(metrics, name)(R(each)) for each in results)
        test = scipy.stats.ttest_rel(two, one)
        low, high = test.confidence_interval(0.95)
        assert found[name]["mean"] == pytest.approx((low + high) / 2, abs=1e-7)
        assert found[name]["half_width"] == pytest.approx((high - low) / 2, rel=1e-5)
        assert (found[name]["n"], found[name]["reason"]) == (4, None)


def test_pairs_take_away_what_both_runs_share(tmp_path, results):
    """The second run is the first and exactly 0.01 more: no spread between pairs, however far apart the seeds are."""
    base = results[0].assign(accuracy=0.9 * results[0]["accuracy"])  # so that both are at most 1
    lifted = base.assign(accuracy=base["accuracy"] + 0.01)
    folders = [folder_of(tmp_path / name, each) for name, each in (("a", base), ("b", lifted))]
    found = row_of(compare(load_sides(folders)))["average_accuracy"]
    assert found["mean"] == pytest.approx(0.01, abs=1e-6)
    assert found["half_width"] < 1e-6
    spread = metrics.average_accuracy(R(base)).std()
    assert spread > 1e-3


def test_seeds_are_paired_by_number_and_missing_ones_are_said(tmp_path, results):
    """Run B holds seeds 12 … 15, backwards, and 15 was not finished: 12 and 13 are in both."""
    moved = results[1].assign_coords(seed=results[1]["seed"] + 2).isel(seed=[3, 2, 1, 0])
    moved = moved.assign(accuracy=moved["accuracy"].where(moved["seed"] != 15))
    folders = [folder_of(tmp_path / name, each) for name, each in (("a", results[0]), ("b", moved))]
    found = row_of(compare(load_sides(folders)))
    one, two = metrics.average_accuracy(R(results[0]))[2:], metrics.average_accuracy(R(results[1]))[:2]
    assert found["average_accuracy"]["mean"] == pytest.approx((two - one).mean(), abs=1e-7)
    assert found["average_accuracy"]["reason"] == "2 of 4 seeds are finished in both runs"
    assert found["pairs"] == 2


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"key": 1}, "key 0 in A, 1 in B"),
        ({"experiment": "x.y"}, "x.y in B"),
        ({"config": {"classes_per_task": 5}}, "classes per task None in A, 5 in B"),
    ],
)
def test_seeds_of_other_draws_are_no_pairs(tmp_path, results, changed, reason):
    folders = [folder_of(tmp_path / "a", results[0]), folder_of(tmp_path / "b", results[1], **changed)]
    found = row_of(compare(load_sides(folders)))["average_accuracy"]
    assert (found["mean"], found["half_width"], found["n"]) == (None, None, 0)
    assert "no pairs" in found["reason"]
    assert reason in found["reason"]


@pytest.mark.parametrize(
    ("seeds", "reason"), [([10], "1 of 4 seeds .* no interval"), ([], "no seed is finished in both")]
)
def test_one_pair_has_no_interval_and_no_pair_no_difference(tmp_path, results, seeds, reason):
    other = results[1].assign_coords(seed=[*seeds, 20, 21, 22, 23][:4])
    folders = [folder_of(tmp_path / name, each) for name, each in (("a", results[0]), ("b", other))]
    found = row_of(compare(load_sides(folders)))["forgetting"]
    assert found["half_width"] is None
    assert (found["mean"] is None) == (not seeds)
    assert re.search(reason, found["reason"])


def with_diverged(results, seeds, strategy):
    """Weights of these seeds are NaN after the last task, under one strategy; their accuracies stand there."""
    finite = xarray.ones_like(results["loss"].isel(bin=0))
    return results.assign(finite=finite.where(~(finite["seed"].isin(seeds) & (finite["strategy"] == strategy)), 0.0))


def test_seeds_that_diverged_are_no_pairs_and_the_page_says_so(tmp_path, results):
    """10 in one run, 11 in the other, and one that the other never began: one of four is left."""
    one, other = with_diverged(results[0], [10], "ewc"), with_diverged(results[1], [11], "ewc")
    other = other.assign(accuracy=other["accuracy"].where(other["seed"] != 13))
    alone = {"net": ["static"], "strategy": ["ewc"]}
    folders = [folder_of(tmp_path / name, each.sel(alone)) for name, each in (("a", one), ("b", other))]
    page = write_comparison(folders, tmp_path / "both")
    found = row_of(json.loads((page.parent / "comparison.json").read_text()), "static")["forgetting"]
    assert found["reason"] == "1 of 4 seeds count in both runs, 2 diverged, 1 not finished in both: no interval"
    text = page.read_text(encoding="utf-8")
    for letter in "AB":
        left_out = f"{letter}: Seeds whose weights became NaN or infinite are left out: static/ewc/class (1 of 4)"
        assert left_out in text


def test_what_diverged_in_every_seed_is_named(tmp_path, results):
    """EWC in both, and in one of them naive too."""
    every = results[0]["seed"].values
    one, other = (with_diverged(each.sel(net=["static"]), every, "ewc") for each in results)
    folders = [folder_of(tmp_path / name, each) for name, each in (("a", one), ("b", other))]
    found = compare(load_sides(folders))
    assert found["alone"] == ["neither A nor B: static/ewc/class (diverged in A and B)"]
    assert [row["strategy"] for row in found["rows"]] == ["naive"]
    save_results(folders[0], one.assign(finite=0 * one["finite"]))
    assert compare(load_sides(folders))["alone"][0] == "B, not A: static/naive/class (diverged in A)"


def test_what_only_one_run_has_is_named(tmp_path, results):
    less = results[1].sel(strategy=["naive"])
    found = compare(load_sides([folder_of(tmp_path / "a", results[0]), folder_of(tmp_path / "b", less)]))
    assert found["alone"] == ["A, not B: static/ewc/class", "A, not B: recurrent/ewc/class"]
    assert {row["strategy"] for row in found["rows"]} == {"naive"}


def test_fields_that_differ_are_found(tmp_path, results):
    small = results[0].sel(net=["static"], strategy=["naive"])
    folders = [folder_of(tmp_path / "a", small), folder_of(tmp_path / "b", small, config={"rate": 0.1, "units": 5})]
    assert settings_that_differ(load_sides(folders)) == [
        ("config.rate", ["0.001", "0.1"]),
        ("config.units", ["–", "5"]),
    ]


def test_the_page_holds_differences_results_and_how_the_runs_differ(tmp_path, results):
    small = [each.sel(strategy=["naive"]) for each in results]
    first, second = folder_of(tmp_path / "a", small[0]), folder_of(tmp_path / "b", small[1], config={"rate": 0.25})
    page = write_comparison([first, second], tmp_path / "both" / "page")
    assert {path.name for path in page.parent.iterdir()} == {
        *("report.html", "comparison.json", "tables.md", "tables.tex", "figures")
    }
    text = page.read_text(encoding="utf-8")
    written = json.loads((page.parent / "comparison.json").read_text())
    assert written["rows"] == compare(load_sides([first, second]))["rows"]
    assert text.count("<img") == 4
    assert all(word in text for word in ("B − A", "0.25", "config.rate", "Repeat them", "ran where A did"))
    assert "| B − A | 4 |" in (page.parent / "tables.md").read_text(encoding="utf-8")
    assert r"B $-$ A & 4 &" in (page.parent / "tables.tex").read_text(encoding="utf-8")
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".png", ".svg"}


def test_what_cannot_be_compared_is_one_sentence(tmp_path, results):
    small = results[0].sel(net=["static"], strategy=["naive"])
    folder = folder_of(tmp_path / "a", small)
    with pytest.raises(RunError, match="2 to 26 different run folders"):
        write_comparison([folder, tmp_path / "x" / ".." / "a"], tmp_path / "both")
    with pytest.raises(RunError, match="nothing is not there"):
        write_comparison([folder, tmp_path / "nothing"], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_run_with_nothing_finished_is_still_compared(tmp_path, results):
    small = results[0].sel(net=["static"], strategy=["naive"])
    nothing = small.assign(accuracy=small["accuracy"] * np.nan)
    page = write_comparison([folder_of(tmp_path / "a", small), folder_of(tmp_path / "b", nothing)], tmp_path / "both")
    text = page.read_text(encoding="utf-8")
    assert "there is nothing to subtract" in text
    assert "No pair: A, not B: static/naive/class." in text
