"""The command line of reports: where the page goes, and what bad input gets."""

import importlib
import sys
from pathlib import Path

import pytest

from bptoolkit.runs import finish, open_run, save_results

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CONFIG = {"experiment": "experiments.x", "config": {}, "seeds": 2, "key": 0}


@pytest.fixture(scope="module")
def main():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("report").main
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make):
    """Two finished runs of one net."""
    results = make(tasks=2, seeds=2, scenarios=["class"]).sel(net=["static"], strategy=["naive"])
    made = []
    for rate in (0.1, 0.2):
        folder = open_run(tmp_path_factory.mktemp("runs") / "run", CONFIG | {"config": {"rate": rate}}).folder
        save_results(folder, results)
        finish(folder)
        made.append(folder)
    return made


def test_one_run_gets_its_report_in_its_own_folder(main, folders, capsys):
    assert main((folders[0],)) == 0
    assert capsys.readouterr().out.strip() == str(folders[0] / "report.html")


def test_several_runs_get_a_folder_of_their_own(main, folders, capsys, tmp_path):
    assert main(tuple(folders)) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page.parent.parent == folders[0].parent
    assert page.parent.name.startswith("comparison-")
    assert main(tuple(folders), to=tmp_path / "here") == 0
    assert (tmp_path / "here" / "report.html").is_file()
    assert not any((folder / "summary.json").exists() for folder in folders[1:])  # a run is only read


def test_runs_of_one_name_in_other_places_have_a_comparison_of_their_own(main, folders, monkeypatch, tmp_path):
    """Both folders are called `run`, as those of a sweep's cells or of two machines may be."""
    made = []
    monkeypatch.setattr("bptoolkit.runs.write_comparison", lambda folders, into: made.append(into))
    for other in (folders[1], tmp_path / "run"):
        main((folders[0], other))
    assert len(set(made)) == 2
    assert {into.parent for into in made} == {folders[0].parent}


@pytest.mark.parametrize("kind", ["one of the runs", "other things"])
def test_a_comparison_does_not_go_where_other_things_are(main, folders, tmp_path, capsys, kind):
    (tmp_path / "thesis.tex").write_text("mine")
    to = folders[0] if kind == "one of the runs" else tmp_path
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    assert main(tuple(folders), to=to) == 2
    told = capsys.readouterr().err
    assert f"holds {'a run' if to is folders[0] else 'thesis.tex'}. Name another" in told
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("names", "kind", "sentence"),
    [
        ([], {}, "2 to 26 different run folders, got none"),
        (["nothing"], {}, "nothing is not there"),
        (["."], {}, "config.json must be a JSON file"),
        ([".", "nothing"], {}, "config.json must be a JSON file"),
        (["nothing"], {"to": Path("x")}, "--to is for comparisons"),
    ],
)
def test_bad_input_gets_one_sentence(main, names, kind, sentence, tmp_path, capsys):
    assert main(tuple(tmp_path / name for name in names), **kind) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
