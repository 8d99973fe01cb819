"""Where a run took place is recorded, the state of its source included; importing the package stays light."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bptoolkit.runs import open_run
from bptoolkit.runs.environment import provenance

CONFIG = {"experiment": "split_digits", "config": {}, "seeds": [0, 1]}


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Open a run as if the script in a folder had been started; return what it recorded."""
    runs = (tmp_path / f"run{i}" for i in itertools.count())

    def of(folder):
        monkeypatch.setattr(sys, "argv", [str(folder / "script.py"), "--seeds", "2"])
        monkeypatch.chdir(tmp_path)
        return json.loads((open_run(next(runs), CONFIG).folder / "environment.json").read_text())

    return of


def test_the_environment_says_where_it_ran(record, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    found = record(tmp_path)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["numpy"] == np.__version__
    assert found["machine"]["cpus"] == os.cpu_count()
    assert found["seeds"] == CONFIG["seeds"]
    assert found["devices"]
    assert found["settings"]["enable_x64"] is True
    assert "XLA_FLAGS" in found["settings"]["variables"]
    assert found["command"].startswith("python ")


def test_what_is_committed_of_it_is_short_and_tells_of_earlier_starts(record, tmp_path):
    """Where compiled programs are kept is a place on this machine."""
    told = record(tmp_path) | {"earlier": [{"started": "before", "source": {"commit": "old"}, "error": "killed"}]}
    told["settings"]["compilation_cache_dir"] = str(tmp_path / "compiled")
    told["command"] = f"python scripts/run.py a/b --runs {tmp_path}/runs --data={tmp_path}/data '{tmp_path}/with space'"
    kept = provenance(told)
    assert {"command", "started", "python", "machine", "devices"} <= set(kept)
    assert not {"ended", "state"} & set(kept)  # not ended yet
    assert "compiled" not in json.dumps(kept)
    assert kept["command"] == "python scripts/run.py a/b --runs …/runs --data=…/data '…/with space'"
    assert kept["settings"]["enable_x64"] is True
    assert kept["earlier"] == [{"started": "before", "source": {"commit": "old"}}]
    assert kept["packages"]["numpy"] == np.__version__
    assert len(kept["packages"]) == 5
    assert set(provenance(told, ("pytest", "not-installed"))["packages"]) == {*kept["packages"], "pytest"}


def test_the_commit_and_whether_it_was_changed_are_recorded(record, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    assert record(folder)["source"] is None

    (folder / "script.py").write_text("x = 1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    for line in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *line], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert record(folder)["source"] == {"commit": head, "dirty": False}

    (folder / "script.py").write_text("x = 2")
    assert record(folder)["source"] == {"commit": head, "dirty": True}


def test_importing_runs_is_light():
    script = "import sys, bptoolkit.runs; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"xarray", "matplotlib", "rich", "jinja2", "h5netcdf", "pandas"}.isdisjoint(loaded)
    assert "bptoolkit.runs" in loaded
