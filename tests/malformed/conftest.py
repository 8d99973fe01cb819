"""What every malformed input owes: one clear sentence, and a disk on which nothing has changed."""

import dataclasses
import hashlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import jax
import pytest

from bptoolkit import runs

ROOT = Path(__file__).parents[2]
CONFIG = {"steps": 2, "nets": ("static",), "strategies": ("naive",), "hidden": (4,), "batch": 4}
NAME = "static/naive/class"


def load(script: str):
    """A script as a module, by the name that others import it by; it leaves JAX's devices and caches as they are."""
    spec = importlib.util.spec_from_file_location(script, ROOT / "scripts" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[script] = module
    spec.loader.exec_module(module)
    if hasattr(module, "prepare"):
        module.prepare = lambda *arguments, **options: None
    return module


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a small run that has ended well."""
    module = importlib.import_module("experiments.split_digits")
    config = module.Config(**CONFIG)
    record = {"experiment": module.__name__, "config": dataclasses.asdict(config), "seeds": 2, "key": 0}
    folder = tmp_path_factory.mktemp("finished") / "run"
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        runs.carry_out(folder, record, module.define(config), question="Does it?")
    runs.write_report(folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of that folder to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def disk(folder: Path) -> dict[str, str]:
    """Every path below, with a digest of its content."""
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(capsys, tmp_path):
    """Calls, and sees a refusal in words: returns them.  A command exits with 2, a function raises."""

    def check(call, *arguments) -> str:
        before = disk(tmp_path)
        try:
            with jax.numpy_dtype_promotion("standard"):  # as a user has it
                code, words = call(*arguments), None
        except SystemExit as error:
            code, words = error.code, None
        except (ValueError, FileNotFoundError, runs.RunError) as error:
            code, words = 2, str(error)
        words = capsys.readouterr().err if words is None else words
        assert code == 2, f"not refused: {code!r}"
        assert_clear(words)
        assert disk(tmp_path) == before
        return words

    return check


def assert_clear(words: str) -> None:
    """A sentence of ours, or the command line's box that names the flag; no page, and nothing of Python's own."""
    assert "Traceback" not in words
    assert 25 < len(words) < 1500, words
    foreign = r"object has no attribute|NoneType|unexpected keyword|not subscriptable|list index|invalid literal for"
    assert not re.match(foreign, words), words
    ours = re.search(r"[.!?]\s*$", words.strip()) and re.match(r"(Error: )?\S+ \S+", words)
    assert ours or "--" in words, words
