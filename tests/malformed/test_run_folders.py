"""Malformed run folders: each file of a finished run damaged in each way, read by all that reads it."""

import json

import pytest

from bptoolkit import runs
from bptoolkit.runs.rebuild import load_experiments
from tests.malformed.conftest import NAME, load
from tests.malformed.damage import DAMAGE, damage, flipped

RUN, REPORT = load("run"), load("report")
REPEAT = lambda folder: RUN.main(["--from", str(folder), "--quiet"])
REPORTED = lambda folder: REPORT.main((folder,))
READERS = {
    "results.nc": [runs.load_results, REPORTED, REPEAT],
    "config.json": [load_experiments, REPORTED, REPEAT],
    "environment.json": [REPORTED, REPEAT],
    "summary.json": [runs.load_summary],
    "log.jsonl": [runs.load_log],
    f"params/{NAME}.npz": [runs.load_params, REPEAT],
}
CASES = [(name, how) for name in READERS for how in DAMAGE if (name, how) != ("log.jsonl", "cut near its end")]
HARMLESS = {("log.jsonl", how) for how in ("cut in half", "empty", "zeros")}  # half a last line is passed over

FIELDS = ("experiment", "config", "seeds", "key")
WRONG = {
    "missing": ...,
    "null": None,
    "text": "x",
    "a list": [[]],
    "an object": {"a": 1},
    "below 0": -1,
    "huge": 10**30,
}
NUMBERS = ("steps", "batch", "rate", "strength", "units", "tolerance", "per_class", "hidden", "nets", "scenario")


@pytest.mark.parametrize(("name", "how"), [case for case in CASES if case not in HARMLESS])
def test_a_damaged_file_is_refused_in_words_by_all_that_reads_it(name, how, copied, refused):
    damage(copied / name, DAMAGE[how])
    for reader in READERS[name]:
        words = refused(reader, copied)
        assert str(copied) in words.replace("\n", "")


@pytest.mark.parametrize("name", ["results.nc", f"params/{NAME}.npz"])
@pytest.mark.parametrize("draw", range(6))
def test_one_bit_flipped_is_noticed_or_does_no_harm(name, draw, copied, finished, refused):
    """Numbers are under a checksum: what is read is what was written, or nothing."""
    damage(copied / name, flipped(draw))
    try:
        read = READERS[name][0](copied)
    except runs.RunError:
        refused(READERS[name][0], copied)
        return
    whole = READERS[name][0](finished)
    if name == "results.nc":
        assert all(read[variable].equals(whole[variable]) for variable in whole.data_vars if variable in read)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("field", FIELDS)
def test_a_malformed_configuration_is_refused_in_words(field, wrong, copied, refused):
    if (field, wrong) == ("config", "text"):
        wrong = "a list"
    edit(copied / "config.json", (field,), WRONG[wrong])
    refused(REPEAT, copied)


@pytest.mark.parametrize("wrong", ["missing", "null", "text", "an object", "below 0"])
@pytest.mark.parametrize("field", NUMBERS)
def test_a_malformed_field_of_the_experiment_is_refused_in_words(field, wrong, copied, refused):
    edit(copied / "config.json", ("config", field), WRONG[wrong])
    refused(REPEAT, copied)


@pytest.mark.parametrize("name", ["os", "experiments.nowhere", "experiments", "../x", "", "experiments.grid", "x y"])
def test_an_experiment_that_is_none_is_refused_in_words(name, copied, refused):
    edit(copied / "config.json", ("experiment",), name)
    refused(REPEAT, copied)


def test_a_cell_of_a_sweep_is_not_repeated_without_its_grid(copied, refused):
    edit(copied / "config.json", ("over",), {"rate": [1e-3, 1e-2]})
    assert "a cell of a sweep" in refused(REPEAT, copied)


@pytest.mark.parametrize("field", ["state", "started", "ended", "command"])
@pytest.mark.parametrize("wrong", ["missing", "an object"])
def test_a_malformed_environment_is_refused_in_words(field, wrong, copied, refused):
    edit(copied / "environment.json", (field,), WRONG[wrong])
    refused(REPORTED, copied)


@pytest.mark.parametrize("kind", ["nowhere", "a file", "an empty folder", "another folder"])
@pytest.mark.parametrize("reader", [runs.load_results, runs.load_params, load_experiments, REPORTED, REPEAT])
def test_what_is_no_run_folder_is_refused_in_words(kind, reader, tmp_path, refused):
    folder = tmp_path / "run"
    if kind == "a file":
        folder.write_text("a file")
    elif kind != "nowhere":
        folder.mkdir()
    if kind == "another folder":
        (folder / "holiday.jpg").write_bytes(b"\xff\xd8")
    refused(reader, folder)


def test_the_undamaged_folder_is_read_by_all(copied):
    """The negative control."""
    for name, readers in READERS.items():
        for reader in readers:
            if reader is not REPEAT and reader is not REPORTED:
                assert reader(copied) is not None, name


def edit(path, where, value) -> None:
    """Set one field of a JSON file, or remove it."""
    data = json.loads(path.read_text("utf-8"))
    inner = data
    for key in where[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    path.write_text(json.dumps(data), "utf-8")
