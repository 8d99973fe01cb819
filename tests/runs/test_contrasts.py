"""One net against another inside a run: paired over seeds, false discoveries over all; and the script."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import xarray

from bptoolkit import continual as cl
from bptoolkit import runs
from bptoolkit.runs import RunError, contrasts, finish, open_run, save_results, save_summary
from bptoolkit.runs.contrasts import joined
from bptoolkit.runs.figures.effects import effects
from bptoolkit.runs.record import save_dataset, write_json

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


@pytest.mark.parametrize("net", ["static", "recurrent"])
def test_a_seed_that_one_net_has_not_finished_is_no_pair(results, net):
    fewer = results.copy(deep=True)
    fewer["accuracy"].loc[{"net": net, "strategy": "ewc", "scenario": "class", "seed": fewer["seed"][1]}] = np.nan
    (rows,) = contrasts([fewer], "static")
    kept = np.array([0, 2, 3])
    one, other = (accuracies(results, name)[kept] for name in ("recurrent", "static"))
    assert row_of(rows)[MEASURE]["n"] == 3
    assert row_of(rows)[MEASURE]["difference"] == pytest.approx(np.mean(one - other))


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


def test_one_seed_can_tell_nothing(make):
    """Where p is 1 for all, so is q."""
    (rows,) = contrasts([make(seeds=1)], "static")
    assert {row[MEASURE]["q"] for row in rows} - {None} == {1.0}


def test_the_base_alone_is_refused(results):
    with pytest.raises(RunError, match="needs another net beside 'static'"):
        contrasts([results.sel(net=["static"])], "static")


def test_a_net_that_is_missing_is_told(results):
    with pytest.raises(RunError, match="needs that net in every run, got static, recurrent"):
        contrasts([results], "one-step")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("answer")


def folder_of(path, results, dataset, experiment="experiments.study", strategies=None):
    fields = {"dataset": dataset, "rate": 0.1, "strategies": strategies}
    config = {"experiment": experiment, "config": fields, "seeds": 4, "key": 0}
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
    (part,) = one["parts"]
    assert part["config"]["config"]["dataset"] == "mnist"
    assert part["made"]["packages"]
    assert {"summary", "contrasts"} <= set(one)
    assert (tmp_path / "out" / "study.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / f"study.{kind}") for kind in ("json", "png")]


def test_the_script_keeps_what_a_sweep_found_at_each_point(script, make, tmp_path):
    """Seed 1 diverged at the second rate, which is null and not a mean over the others."""
    whole = make(seeds=3)
    broken = whole.copy(deep=True)
    broken["accuracy"][{"seed": 1}] = np.nan
    swept = tmp_path / "sweep"
    place = folder_of(swept / "cells" / "one", whole, "mnist")
    results = xarray.concat([whole, broken], xarray.IndexVariable("rate", [0.1, 0.4]), data_vars="all")
    save_dataset(swept / "sweep.nc", results.assign_attrs(over=["rate"], failed=[]))
    cell = {"cell": {}, "folder": place.relative_to(swept).as_posix(), "state": "finished", "error": None}
    write_json(swept / "sweep.json", {"over": {"rate": [0.1, 0.4]}, "cells": [cell]})

    run = folder_of(tmp_path / "run", make(seeds=8), "mnist")
    assert script.main((run,), sweeps=(swept,), out=tmp_path / "out") == 0
    (kept,) = json.loads((tmp_path / "out" / "study.json").read_text())["sweeps"]
    assert kept["over"] == {"rate": [0.1, 0.4]}
    assert kept["config"]["config"] == {"dataset": "mnist", "strategies": None}  # the rate is swept
    at = {"net": "static", "strategy": "ewc", "scenario": "class"}
    first, second = (one for one in kept["points"] if at.items() <= one.items())
    assert (first["values"], second["values"]) == ({"rate": 0.1}, {"rate": 0.4})
    assert first["mean"] == pytest.approx(whole["accuracy"].sel(at).isel(after=-1).mean().item())
    assert (second["mean"], second["half_width"]) == (None, None)


def test_a_strategy_run_anew_takes_the_place_of_the_old(script, make, tmp_path):
    """Its rows are those of the new run, all others those of the old, in the old order; both parts are recorded."""
    old, new = make(seeds=8), make(seeds=8, draw=1).sel(strategy=["ewc"])
    folders = [folder_of(tmp_path / "old", old, "mnist"), folder_of(tmp_path / "new", new, "mnist", strategies=["ewc"])]
    assert script.main(tuple(folders), out=tmp_path / "out") == 0
    (one,) = json.loads((tmp_path / "out" / "study.json").read_text())["runs"].values()
    assert [part["config"]["config"]["strategies"] for part in one["parts"]] == [None, ["ewc"]]
    assert list(dict.fromkeys(row["strategy"] for row in one["contrasts"])) == old["strategy"].values.tolist()
    for strategy, source in (("ewc", new), ("naive", old)):
        found = next(row for row in one["contrasts"] if row["strategy"] == strategy and row["scenario"] == "class")
        expected = accuracies(source, "recurrent", strategy) - accuracies(source, "static", strategy)
        assert found[MEASURE]["difference"] == pytest.approx(expected.mean())


def test_runs_of_other_seeds_are_not_joined(make):
    with pytest.raises(RunError, match="the same nets, scenarios and seeds"):
        joined([make(seeds=8), make(seeds=4).sel(strategy=["ewc"])])


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
    finish(other, "interrupted")
    assert script.main((other,), out=tmp_path / "out") == 2
    assert "must hold a finished run, got one that is interrupted" in capsys.readouterr().err
    name = runs.load_config(same[0])["experiment"].rsplit(".", 1)[-1]
    write_json(tmp_path / f"{name}.json", {"rows": []})
    assert script.main((same[0],), out=tmp_path) == 2
    assert "holds results of another kind" in capsys.readouterr().err
