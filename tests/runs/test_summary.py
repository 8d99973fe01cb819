"""Intervals against scipy and against their own promise; the summary against plain numpy."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from bptoolkit.runs import RunError, interval, load_summary, save_summary, summarise


def row(summary, net="static", strategy="naive", scenario="class"):
    wanted = (net, strategy, scenario)
    return next(r for r in summary["rows"] if (r["net"], r["strategy"], r["scenario"]) == wanted)


def of(results, name, net="static", strategy="naive", scenario="class"):
    return results[name].sel(net=net, strategy=strategy, scenario=scenario).values.astype(np.float64)


# the interval


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_the_interval_is_that_of_scipy(n, level):
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    mean, half = interval(values, level)
    low, high = scipy.stats.t.interval(level, n - 1, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-12)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """95 % of 4000 intervals of 4 values, within 4 standard errors; the normal quantile would cover far fewer."""
    draws = np.random.default_rng(0).normal(1.0, 0.3, (4000, 4))
    errors, halves = np.array([(abs(mean - 1.0), half) for mean, half in map(interval, draws)]).T
    error = math.sqrt(0.95 * 0.05 / 4000)
    assert abs(np.mean(errors <= halves) - 0.95) < 4 * error
    normal = halves * scipy.stats.norm.ppf(0.975) / scipy.stats.t.ppf(0.975, 3)
    assert np.mean(errors <= normal) < 0.95 - 4 * error


def test_one_value_has_no_interval_and_none_has_no_mean():
    mean, half = interval(np.array([0.5]))
    assert mean == 0.5
    assert math.isnan(half)
    assert all(map(math.isnan, interval(np.array([]))))


def test_a_nan_is_not_dropped_in_silence():
    assert all(map(math.isnan, interval(np.array([0.1, np.nan, 0.3]))))


# the summary


def test_the_metrics_are_those_of_the_definitions(results):
    """Sums written out over R[i, j], one seed at a time."""
    R = of(results, "accuracy")[:, 1:]
    T = R.shape[1]
    by_hand = {
        "average_accuracy": [sum(r[T - 1, j] for j in range(T)) / T for r in R],
        "learning_accuracy": [sum(r[i, i] for i in range(T)) / T for r in R],
        "forgetting": [
            sum(max(r[i, j] for i in range(T - 1)) - r[T - 1, j] for j in range(T - 1)) / (T - 1) for r in R
        ],
        "backward_transfer": [sum(r[T - 1, i] - r[i, i] for i in range(T - 1)) / (T - 1) for r in R],
    }
    found = row(summarise(results))
    for name, values in by_hand.items():
        mean, half = interval(np.array(values))
        assert found[name] == {
            "mean": pytest.approx(mean, abs=1e-12),
            "half_width": pytest.approx(half, abs=1e-12),
            "n": 4,
            "reason": None,
        }


def test_the_gap_is_train_minus_test_after_the_last_task(results):
    gap = (of(results, "train_accuracy") - of(results, "accuracy"))[:, -1].mean(1)
    found = row(summarise(results))["train_test_gap"]
    assert (found["mean"], found["half_width"]) == pytest.approx(interval(gap))


def test_settling_is_the_mean_over_tasks_then_seeds(results):
    found = row(summarise(results), "recurrent", "ewc")["settling"]
    for way, names in {"forward": ("settling_steps", "unconverged"), "backward": ("backward_steps", None)}.items():
        steps = of(results, names[0], "recurrent", "ewc").mean(1)
        assert (found[way]["steps"]["mean"], found[way]["steps"]["half_width"]) == pytest.approx(interval(steps))
    assert found["forward"]["unconverged"]["mean"] == pytest.approx(0.02)
    assert found["backward"]["unconverged"]["mean"] == 0


def test_a_net_that_does_not_settle_has_no_settling(results):
    assert row(summarise(results), "static")["settling"] is None


def test_plasticity_is_that_after_the_first_and_the_last_task(results):
    dormant = results["accuracy"].isel(on=0, drop=True) / 2
    found = row(summarise(results.assign(dormant=dormant, effective_rank=9 * dormant, weight_norm=dormant)))[
        "plasticity"
    ]
    values = of(results, "accuracy")[:, :, 0] / 2
    for when, after in (("first", 1), ("last", -1)):
        mean, half = interval(9 * values[:, after])
        told = found["effective_rank"][when]
        assert (told["mean"], told["half_width"]) == pytest.approx((mean, half), rel=1e-5)
    assert row(summarise(results))["plasticity"] is None


def test_a_diagnosis_is_the_mean_over_tasks_after_the_last_one(results):
    """What is NaN everywhere has no mean, and says why; a seed with a task that is NaN does not count."""
    names = ("plain", "masked", "nearest_mean", "linear_probe", "calibration_error", "brier_score")
    found = results.assign({name: results["accuracy"] / (1 + i) for i, name in enumerate(names)})
    partly = found["nearest_mean"].where((results["seed"] > 10) | (results["on"] > 1))
    found = found.assign(linear_probe=np.nan * results["accuracy"], nearest_mean=partly)
    told = row(summarise(found))["diagnosis"]
    assert tuple(told) == names
    mean, half = interval(of(results, "accuracy")[:, -1].mean(1) / 2)
    assert (told["masked"]["mean"], told["masked"]["half_width"]) == pytest.approx((mean, half), rel=1e-5)
    assert (told["linear_probe"]["mean"], told["linear_probe"]["reason"]) == (None, "no features of one net")
    mean, half = interval(of(results, "accuracy")[1:, -1].mean(1) / 3)
    assert (told["nearest_mean"]["mean"], told["nearest_mean"]["half_width"]) == pytest.approx((mean, half), rel=1e-5)
    assert told["nearest_mean"]["reason"] == "3 of 4 seeds"
    assert row(summarise(results))["diagnosis"] is None


def test_what_tests_within_the_tasks_show(results):
    """Four tests a task, of which a task before falls to 0.1 in the first and is back at the last.  Of another
    combination there were fewer, as of one whose stages are shorter."""
    tests = np.full((2, 4, 2, 4, 20, 5), 0.9)
    tests[..., 4::4, :] = 0.1
    tests[0, 0, :, :, 10:] = np.nan
    ends = np.broadcast_to(np.arange(3, 20, 4.0), (2, 4, 2, 5)).copy()
    ends[0, 0] = [1, 3, 5, 7, 9]
    run = ["net", "strategy", "scenario"]
    variables = {"within": ([*run, "seed", "evaluation", "on"], tests), "end": ([*run, "task"], ends)}
    summary = summarise(results.assign(variables))
    found = row(summary, "static", "ewc")["within"]
    assert found["stability_gap"]["mean"] == pytest.approx(0.8)
    assert found["minimum_accuracy"]["mean"] == pytest.approx(0.1)
    assert found["worst_case_accuracy"]["mean"] == pytest.approx(0.9 / 5 + 0.8 * 0.1)
    assert row(summary)["within"]["stability_gap"]["n"] == 4
    assert row(summarise(results))["within"] is None


def test_costs_are_those_of_the_net_the_strategy_and_the_scenario(results):
    found = row(summarise(results), "recurrent", "replay", "domain")
    assert found["parameters"] == 17510
    assert found["flops"] == 812345
    assert found["seconds"] == of(results, "seconds", "recurrent", "replay", "domain")


def test_the_summary_is_plain_json_and_comes_back(tmp_path, results):
    summary = save_summary(tmp_path, results)
    assert load_summary(tmp_path) == summary == json.loads(json.dumps(summary, allow_nan=False))


def test_the_order_of_axes_and_of_seeds_does_not_matter(results):
    turned = results.transpose("on", "after", "seed", ...).isel(seed=[2, 0, 3, 1])
    found, expected = row(summarise(turned)), row(summarise(results))
    assert found["forgetting"]["mean"] == pytest.approx(expected["forgetting"]["mean"], abs=1e-12)
    assert found["forgetting"]["half_width"] == pytest.approx(expected["forgetting"]["half_width"], abs=1e-12)


def test_the_untrained_row_is_not_counted(results):
    untrained = results.assign(accuracy=results["accuracy"].where(results["after"] > 0, 1.0))
    assert summarise(untrained)["rows"][0] == summarise(results)["rows"][0]


def test_what_was_not_run_is_named_and_has_no_row(results):
    summary = summarise(results)
    assert summary["not_run"] == [["recurrent", "joint", "domain"]]
    assert len(summary["rows"]) == 2 * 4 * 2 - 1


def test_a_seed_that_diverged_is_not_counted_and_named(results):
    """A net of NaN is never right: its accuracy of 0 enters no mean.  Where all have diverged, there is no row."""
    finite = results["loss"].isel(bin=0, drop=True) * 0 + 1
    wild = (finite["net"] == "static") & (finite["scenario"] == "class") & (finite["task"] > 2)
    lost = wild & ((finite["strategy"] == "naive") & (finite["seed"] == 11) | (finite["strategy"] == "ewc"))
    marked = results.assign(
        finite=finite.where(~lost, 0), accuracy=results["accuracy"].where(~lost.any("task"), 0).transpose(..., "on")
    )
    summary = summarise(marked)
    assert summary["diverged"] == [["static", "naive", "class", 1], ["static", "ewc", "class", 4]]
    assert summary["not_run"] == [["recurrent", "joint", "domain"]]
    named = [(r["net"], r["strategy"], r["scenario"]) for r in summary["rows"]]
    assert ("static", "ewc", "class") not in named
    assert ("static", "ewc", "domain") in named
    left = summarise(results.sel(seed=[10, 12, 13]))
    one, other = (row(of_seeds)["average_accuracy"] for of_seeds in (summary, left))
    assert (one["mean"], one["half_width"]) == (other["mean"], other["half_width"])
    assert (one["n"], one["reason"]) == (3, "3 of 4 seeds")


def test_a_seed_that_was_not_trained_to_the_end_is_not_counted(results):
    """Two seeds stop after task 3: mean and interval are those of the other two, and the reason says so."""
    stopped = (results["seed"] >= 12) & (results["after"] > 3)
    cut = results.assign(accuracy=results["accuracy"].where(~stopped))
    found = row(summarise(cut))
    assert found["average_accuracy"] == row(summarise(results.isel(seed=[0, 1])))["average_accuracy"] | {
        "reason": "2 of 4 seeds"
    }
    assert row(summarise(cut), "recurrent")["settling"]["forward"]["steps"]["n"] == 2


def test_one_of_several_seeds_has_a_mean_and_the_reason_for_no_interval(results):
    alone = row(summarise(results.assign(accuracy=results["accuracy"].where(results["seed"] == 10))))
    assert alone["average_accuracy"]["mean"] is not None
    assert alone["average_accuracy"]["half_width"] is None
    assert alone["average_accuracy"]["reason"] == "1 of 4 seeds: no interval"


def test_one_seed_has_a_mean_and_the_reason_for_no_interval(make):
    found = row(summarise(make(seeds=1)))["average_accuracy"]
    assert found["mean"] is not None
    assert (found["half_width"], found["reason"]) == (None, "one seed: no interval")


def test_one_task_has_no_forgetting_and_the_reason(make):
    found = row(summarise(make(tasks=1)))
    for name in ("forgetting", "backward_transfer"):
        assert (found[name]["mean"], found[name]["half_width"], found[name]["n"]) == (None, None, 0)
        assert "one task" in found[name]["reason"]
    assert found["average_accuracy"]["mean"] is not None


def test_results_without_the_optional_variables_say_not_measured(results):
    found = row(summarise(results[["accuracy"]]))
    assert found["train_test_gap"]["reason"] == "not measured"
    assert found["settling"] is None
    assert found["parameters"] is None


@pytest.mark.parametrize(
    ("given", "expected"), [(0.1, {"class": 0.1, "domain": 0.1}), ([0.1, 0.5], {"class": 0.1, "domain": 0.5})]
)
def test_chance_is_one_number_or_one_for_each_scenario(results, given, expected):
    assert summarise(results.assign_attrs(chance=given))["chance"] == expected


def test_unknown_chance_is_null(results):
    del results.attrs["chance"]
    assert summarise(results)["chance"] == {"class": None, "domain": None}


def test_chance_of_another_length_is_refused(results):
    with pytest.raises(ValueError, match=r"one for each of \['class', 'domain'\], got 3"):
        summarise(results.assign_attrs(chance=[0.1, 0.2, 0.3]))


def test_a_missing_summary_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"summary\.json must be a JSON file"):
        load_summary(tmp_path)
