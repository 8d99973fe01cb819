"""The tutorials run as they stand, from an empty folder, and print what they say they print."""

import re
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
TUTORIALS = sorted(path.stem for path in FOLDER.glob("*.md"))
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def as_a_user_has_it(tmp_path, monkeypatch):
    """The settings with which JAX starts, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        yield


def said_and_printed(page: str, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """Run the blocks of a page in one namespace; each ```text block, and what the block of code before it printed."""
    names, printed, pairs = {}, "", []
    for kind, block in BLOCK.findall(page):
        if kind == "text":
            pairs.append((block, printed))
        else:
            exec(compile(block, "tutorial", "exec"), names)
            printed = capsys.readouterr().out
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_prints_what_it_says(name, as_a_user_has_it, capsys):
    pairs = said_and_printed((FOLDER / f"{name}.md").read_text("utf-8"), capsys)
    assert pairs
    assert [said for said, _ in pairs] == [printed for _, printed in pairs]


def test_a_page_that_says_something_else_would_be_found(capsys):
    page = "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"
    assert said_and_printed(page, capsys) == [("3\n", "2\n")]
