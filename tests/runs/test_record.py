"""A run folder: claimed once, never half-written, read back bit by bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray

from bptoolkit.runs import RunError, finish, load_results, open_run, recorded_devices, run_name, save_results
from bptoolkit.runs.record import other_devices, replacing, write_json, write_text

CONFIG = {"experiment": "experiments.split_digits", "config": {"rate": 0.001, "sizes": [64, 100]}, "seeds": [0, 1]}


def changed(rate):
    return CONFIG | {"config": CONFIG["config"] | {"rate": rate}}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def done(tmp_path, results):
    """The folder of a finished run."""
    folder = open_run(tmp_path / "run", CONFIG).folder
    save_results(folder, results)
    finish(folder)
    return folder


# the name


def test_a_name_is_the_experiment_and_eight_digits():
    name, _, digits = run_name(CONFIG).rpartition("-")
    assert name == "split_digits"
    assert len(digits) == 8
    assert int(digits, 16) >= 0


def test_a_name_does_not_depend_on_the_order_of_keys_or_the_kind_of_sequence():
    turned = {key: CONFIG[key] for key in reversed(CONFIG)} | {"config": {"sizes": (64, 100), "rate": 0.001}}
    assert run_name(turned) == run_name(CONFIG)


def test_every_change_of_the_configuration_changes_the_name():
    others = [changed(0.002), changed(None), CONFIG | {"seeds": [1, 0]}, CONFIG | {"config": {}}]
    assert len({run_name(config) for config in [CONFIG, *others]}) == 5


def test_a_name_is_the_same_in_another_process():
    script = f"from bptoolkit.runs import run_name; print(run_name({CONFIG!r}))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == run_name(CONFIG)


@pytest.mark.parametrize("value", [print, float("nan"), float("inf"), {1, 2}, np.zeros(2)])
def test_a_configuration_that_is_not_plain_data_is_refused(tmp_path, value):
    with pytest.raises(RunError, match="plain data"):
        open_run(tmp_path / "run", CONFIG | {"config": {"rate": value}})
    assert not (tmp_path / "run").exists()


def test_a_configuration_must_name_its_experiment():
    with pytest.raises(RunError, match='must name its "experiment", got the keys'):
        run_name({"config": {}})


# the folder


def test_a_new_run_records_what_rebuilds_it(tmp_path):
    run = open_run(tmp_path / "deep" / "run", CONFIG)
    assert not run.found
    assert json.loads((run.folder / "config.json").read_text()) == CONFIG


def test_a_finished_run_is_found_and_left_alone(done):
    before = contents(done)
    assert open_run(done, CONFIG).found
    assert contents(done) == before


def test_again_starts_the_record_anew_and_leaves_no_result_of_the_old_one_under_it(done):
    """Killed now, the run must not show what another commit has found."""
    for name in ("summary.json", "report.html", "tables.md", "tables.tex", "log.jsonl"):
        write_text(done / name, "{}")
    for name in ("figures", "params", "unfinished"):
        write_text(done / name / "a" / "b", "old")
    assert not open_run(done, CONFIG, again=True).found
    assert json.loads((done / "environment.json").read_text())["state"] == "running"
    assert set(contents(done)) == {"config.json", "environment.json", "log.jsonl"}


def test_a_run_that_goes_on_keeps_what_it_goes_on_with_alone(done):
    """Results are made anew of the parts; those that a start before has left are of another record."""
    finish(done, "failed")
    for name in ("params", "unfinished"):
        write_text(done / name / "a", "kept")
    assert not open_run(done, CONFIG).found
    assert {path.name for path in done.iterdir()} == {"config.json", "environment.json", "params", "unfinished"}


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_run_that_did_not_finish_is_not_found(done, state):
    finish(done, state)
    assert not open_run(done, CONFIG).found


def test_a_run_without_its_results_is_not_found(done):
    (done / "results.nc").unlink()
    assert not open_run(done, CONFIG).found


def test_a_killed_run_can_be_opened_again(tmp_path):
    folder = open_run(tmp_path, CONFIG).folder
    (folder / ".results.nc.123.part").write_bytes(b"half")
    (folder / "environment.json").unlink()
    assert not open_run(folder, CONFIG).found


def test_another_run_is_refused_with_the_first_difference_and_nothing_changes(done):
    before = contents(done)
    with pytest.raises(RunError, match=r"already holds another run \(config\.rate is 0\.001 there, 0\.1 asked for\)"):
        open_run(done, changed(0.1), again=True)
    assert contents(done) == before


def test_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError, match="needs a folder, got the file"):
        open_run(tmp_path / "run", CONFIG)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made or read"):
        open_run(tmp_path / "file" / "run", CONFIG)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"new, empty, or hold this run; .* holds thesis\.tex"):
        open_run(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("text", "sentence"), [("{", "cannot be read"), ("[]", "must hold a JSON object")])
def test_a_damaged_record_is_refused(tmp_path, text, sentence):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=sentence):
        open_run(tmp_path, CONFIG)


def test_the_devices_are_those_that_the_run_began_with(tmp_path):
    """On three; that a later start had others makes no difference to what goes on bit for bit."""
    assert recorded_devices(tmp_path) is None
    folder = open_run(tmp_path, CONFIG).folder
    path = folder / "environment.json"
    write_json(path, json.loads(path.read_text()) | {"devices": ["cpu:0 cpu", "cpu:1 cpu", "cpu:2 cpu"]})
    assert recorded_devices(folder) == 3
    (folder / "unfinished").mkdir()
    open_run(folder, CONFIG)
    assert len(json.loads(path.read_text())["devices"]) != 3
    assert recorded_devices(folder) == 3


def test_another_split_of_batches_than_before_is_told(tmp_path):
    """On the same devices, whose sums over a batch then differ."""
    folder = open_run(tmp_path, CONFIG, data_devices=2).folder
    assert other_devices(folder) is None
    (folder / "unfinished").mkdir()
    open_run(folder, CONFIG, data_devices=2)
    assert other_devices(folder) is None
    open_run(folder, CONFIG)
    told = r"began on (.+) with --data-devices 2 and goes on on \1 with --data-devices 1: its results are the same to r"
    assert re.search(told, other_devices(folder))


def test_a_run_ends_in_one_of_three_states(done):
    with pytest.raises(RunError, match="finished, failed, interrupted; got 'done'"):
        finish(done, "done")


def test_the_end_is_recorded(done):
    record = json.loads((done / "environment.json").read_text())
    assert record["state"] == "finished"
    assert record["started"] <= record["ended"]


# whole files


def test_a_file_is_flushed_before_it_takes_its_place(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: (calls.append(name), real(*given))[1])
    write_text(tmp_path / "a", "text")
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "a", "old")

    def write():
        with replacing(tmp_path / "a") as part:
            part.write_text("ne")
            raise error

    with pytest.raises((RunError, KeyboardInterrupt)):
        write()
    assert contents(tmp_path) == {"a": b"old"}


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"config\.json cannot be written \(No space left on device\)"):
        open_run(tmp_path, CONFIG)
    assert contents(tmp_path) == {}


def test_nan_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a", {"x": float("nan")})
    assert contents(tmp_path) == {}


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """The file holds one letter, 4 MiB of it; the writer is killed while it replaces one letter by the next."""
    script = (
        "import itertools, pathlib, sys\nfrom bptoolkit.runs.record import write_text\n"
        "for letter in itertools.cycle('abc'): write_text(pathlib.Path(sys.argv[1]), letter * 2**22)"
    )
    path = tmp_path / "a"
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
    while not path.exists():
        assert writer.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    text = path.read_text()
    assert text == text[0] * 2**22


# the results


def bits(variable):
    return variable.values.tobytes() if variable.dtype.kind != "U" else variable.values.tolist()


def test_results_come_back_bit_by_bit(tmp_path, results):
    save_results(tmp_path, results)
    back = load_results(tmp_path)
    assert back.identical(results)
    assert all(bits(back[name]) == bits(results[name]) for name in results.variables)
    assert {name: back[name].dtype for name in back.variables} == {
        name: v.dtype for name, v in results.variables.items()
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_odd_floats_come_back(tmp_path, results, dtype):
    odd = np.array([-0.0, np.nan, -np.nan, np.inf, -np.inf, np.finfo(dtype).tiny / 4, np.nextafter(dtype(1), dtype(2))])
    odd = xarray.DataArray(odd.astype(dtype), dims="odd")
    save_results(tmp_path, results.assign(odd=odd, flag=odd > 0, count=odd.size))
    back = load_results(tmp_path)
    assert bits(back["odd"]) == bits(odd)
    assert back["flag"].dtype == bool
    assert back["count"].dtype.kind == "i"


def test_missing_results_are_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"results\.nc is missing"):
        load_results(tmp_path)


def test_results_cut_short_anywhere_are_refused(tmp_path, results):
    path = save_results(tmp_path, results)
    whole = path.read_bytes()
    for size in [0, 1, 7, 100, *range(1000, len(whole), len(whole) // 12), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(RunError, match=f"must be a whole NetCDF file, got {size} bytes"):
            load_results(tmp_path)


def test_one_flipped_bit_in_an_accuracy_is_noticed(tmp_path, results):
    path = save_results(tmp_path, results)
    whole = bytearray(path.read_bytes())
    place = whole.find(results["accuracy"].values[0, 0, 0].tobytes())
    assert place > 0
    whole[place] ^= 1
    path.write_bytes(whole)
    with pytest.raises(RunError, match="cannot be read"):
        load_results(tmp_path)


def test_another_file_by_that_name_is_refused(tmp_path, results):
    (tmp_path / "results.nc").write_text("accuracy,0.9\n")
    with pytest.raises(RunError, match="must be a whole NetCDF file"):
        load_results(tmp_path)
    save_results(tmp_path, results[["accuracy"]].isel(seed=0))
    with pytest.raises(RunError, match=r"must hold accuracy\[net, .*, on\], got \[net, strategy, scenario, aft"):
        load_results(tmp_path)
