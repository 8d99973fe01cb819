"""The command line: what it runs, what it keeps, and what bad input gets."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bptoolkit import runs

ROOT = Path(__file__).parents[2]
TINY = ["--steps", "2", "--seeds", "2", "--nets", "static", "--strategies", "naive", "--quiet"]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs scripts/run.py from an empty folder, with a cache of compiled programs shared by these tests."""
    cache = tmp_path_factory.mktemp("cache")

    def call(*arguments, cwd, **variables):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "COLUMNS": "200"} | variables
        line = [sys.executable, str(ROOT / "scripts" / "run.py"), *map(str, arguments)]
        return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    return call


def test_list_names_every_experiment_with_its_question(command, tmp_path):
    ran = command("--list", cwd=tmp_path)
    assert ran.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines() if line[:1].isalpha())
    assert set(lines) >= {"split_digits", "split_mnist", "split_fashion"}
    assert "grid" not in lines
    assert all("?" in question for question in lines.values())


def test_help_shows_the_fields_of_the_experiment_and_of_the_run(command, tmp_path):
    ran = command("split_digits", "--help", cwd=tmp_path)
    assert ran.returncode == 0
    assert all(flag in ran.stdout for flag in ("--scenario", "--strength", "--units", "--seeds", "--again"))


@pytest.mark.slow
def test_a_run_is_kept_found_again_and_repeats_bit_for_bit(command, tmp_path):
    first = command("split_digits", *TINY, "--tensorboard", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    kept = {path.name for path in folder.iterdir()} - {".lock"}
    record, results = {"config.json", "environment.json", "log.jsonl"}, {"results.nc", "params"}
    assert kept == record | results | {
        "summary.json",
        "tables.md",
        "tables.tex",
        "figures",
        "report.html",
        "tensorboard",
    }
    assert list((folder / "tensorboard" / "static" / "naive" / "class").glob("events.out.tfevents.*"))
    results = runs.load_results(folder)
    assert results["accuracy"].dims == ("net", "strategy", "scenario", "seed", "after", "on")
    assert results["accuracy"].shape == (1, 1, 1, 2, 6, 5)
    assert json.loads((folder / "environment.json").read_text())["state"] == "finished"

    found = command("split_digits", *TINY, cwd=tmp_path)
    assert found.returncode == 0
    assert "already" in found.stdout

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    repeated = command("--from", folder, "--quiet", cwd=tmp_path)
    assert (repeated.returncode, repeated.stdout.splitlines()[0]) == (0, "Bit-identical: results and weights.")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    accuracy = results["accuracy"].copy(deep=True)
    accuracy.values[0, 0, 0, 1, 2, 3] += 0.5
    runs.save_results(folder, results.assign(accuracy=accuracy))
    differing = command("--from", folder, "--into", "repeated", "--quiet", cwd=tmp_path)
    assert differing.returncode == 1
    assert f"accuracy differs in 1 of {accuracy.size} values, by at most 0.5." in differing.stdout
    assert runs.load_results(tmp_path / "repeated")["accuracy"].equals(results["accuracy"])


def test_no_kill_at_all_is_no_success(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("check_resume")
    assert script.main(script.Options(kills=0)) == 2
    assert "kills must be a whole number of at least 1, got 0." in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_killed_three_times_ends_bit_identical(compiled, tmp_path):
    """As `scripts/check_resume.py` does it: processes killed at random moments, the first half within their start."""
    script = [sys.executable, str(ROOT / "scripts" / "check_resume.py"), "--kills", "3", "--strategies", "naive"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
    done = subprocess.run(
        [*script, "--steps", "100", "--save-every", "20"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("3 kills, all runs bit-identical.\n")


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(compiled, tmp_path):
    line = [sys.executable, str(ROOT / "scripts" / "run.py"), "split_digits", *TINY, "--steps", "100000"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
    process = subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/*/log.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert "static/naive/class is saved after" in told
    assert "The same command goes on from there." in told
    assert "Traceback" not in told
    assert len(list(tmp_path.glob("runs/*/unfinished/static/naive/class/0*"))) == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("split_digits --seeds 3", "The same command goes on from there."),
        ("split_digits --again", "The same command without --again goes on from there."),
        ("--from runs/a", "A repetition without --into is removed."),
        ("--from=runs/a", "A repetition without --into is removed."),
        ("--from runs/a --into=runs/b", "The same command goes on from there."),
    ],
)
def test_an_interrupted_command_says_truly_how_it_goes_on(line, sentence):
    found = importlib.util.spec_from_file_location("run", ROOT / "scripts" / "run.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    assert module.onward(line.split()) == sentence


@pytest.mark.parametrize(("restarts", "passed"), [("0", "split_digits --again"), ("1", "split_digits")])
def test_a_job_put_back_into_the_queue_goes_on_and_does_not_begin_anew(tmp_path, restarts, passed):
    """`srun` is one that prints what it is given."""
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\necho "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_RESTART_COUNT": restarts}
    line = ["bash", str(ROOT / "scripts" / "slurm.sh"), "split_digits", "--again"]
    ran = subprocess.run(line, env=variables, capture_output=True, text=True, check=True)
    assert ran.stdout.endswith(f"scripts/run.py {passed}\n")


def test_bad_input_gets_one_sentence_and_leaves_nothing(command, tmp_path):
    """As a process; `tests/malformed` holds all of them, in one."""
    ran = command("split_digits", "--strength", "-1", "--quiet", cwd=tmp_path)
    assert ran.returncode == 2
    assert "strength must be a finite number of at least 0" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_flag_is_refused(command, tmp_path):
    ran = command("split_digits", "--sedes", "3", cwd=tmp_path)
    assert ran.returncode == 2
    assert "--seeds" in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_writer_whose_package_is_missing_is_refused_before_anything_is_written(command, tmp_path):
    ran = command("split_digits", *TINY, "--wandb", "mine", cwd=tmp_path)
    assert ran.returncode == 2
    assert "Do: pip install bptoolkit[wandb]" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_made_is_refused(command, tmp_path):
    (tmp_path / "runs").write_text("a file")
    ran = command("split_digits", *TINY, cwd=tmp_path)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert (tmp_path / "runs").read_text() == "a file"


def test_missing_data_are_refused_before_anything_is_written(command, tmp_path):
    """A file that is there but wrong is never passed over."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03")
    ran = command("split_mnist", cwd=tmp_path, BPTOOLKIT_DATA=str(tmp_path / "data"))
    assert ran.returncode == 2
    assert "train-images-idx3-ubyte" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "runs").exists()
