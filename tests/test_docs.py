"""The pages under docs/ build without a warning, need no network, and hold every public name with its documentation."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["continual", "data", "fixed_point", "learning", "models", "runs"]


def build(source: Path, out: Path) -> subprocess.CompletedProcess:
    """As `make docs` does."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = build(ROOT / "docs", out)
    assert built.returncode == 0, built.stderr
    return out


def public_names(package: ModuleType) -> set[str]:
    """Full names of what a package exports; of a module that it exports, what that one does."""
    found = set()
    for name in package.__all__:
        part = getattr(package, name)
        found |= public_names(part) if inspect.ismodule(part) else {f"{package.__name__}.{name}"}
    return found


PUBLIC = {name for part in PACKAGES for name in public_names(importlib.import_module(f"bptoolkit.{part}"))}


def entries(site: Path) -> dict[str, str]:
    """The names that have an entry in the reference, and its page and anchor, as the inventory lists them."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    rows = [row.split() for row in zlib.decompress(packed).decode("utf-8").splitlines()]
    return {row[0]: row[3].replace("$", row[0]) for row in rows if row[1].startswith("py:")}


def test_every_public_name_is_in_the_reference(site):
    assert PUBLIC - entries(site).keys() == set()


def test_a_name_that_is_missing_there_would_be_found(site):
    assert {*PUBLIC, "bptoolkit.models.no_such_net"} - entries(site).keys() == {"bptoolkit.models.no_such_net"}


def undocumented(site: Path, names: Iterable[str]) -> set[str]:
    """Names whose entry holds no text: between its <dd> and the next tag there must stand a paragraph or a list."""
    where = entries(site)
    pages = {page: (site / page).read_text("utf-8") for page in {uri.partition("#")[0] for uri in where.values()}}
    found = set()
    for name in names:
        page, _, anchor = where[name].partition("#")
        body = re.search(rf'id="{re.escape(anchor)}".*?</dt>\s*<dd>(.{{0,40}})', pages[page], re.DOTALL)
        if body is None or not re.match(r"\s*<(p|ul)\b", body[1]):
            found.add(name)
    return found


def test_every_public_name_is_documented(site):
    """Functions, records, and aliases such as `fixed_point.Adjoint`, whose text follows them as a string."""
    assert undocumented(site, PUBLIC) == set()


@pytest.fixture
def small(tmp_path) -> Path:
    """The tools of docs/ with a page about `bptoolkit.data` alone."""
    for folder in ("docs/_ext", "bptoolkit"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("docs/conf.py", "docs/api/data.rst", "pyproject.toml"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    with (tmp_path / "docs" / "conf.py").open("a", encoding="utf-8") as conf:
        conf.write("\nCONTENTS = {'All': ['api/*']}\n")
    (tmp_path / "docs" / "index.md").write_text("# Title\n\nA [link](api/data.rst).\n", "utf-8")
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def test_broken_links_unknown_types_and_missing_docstrings_are_found(small, tmp_path):
    replace(small / "docs" / "index.md", "data.rst", "date.rst")
    replace(small / "bptoolkit" / "data" / "digits.py", "-> Dataset", "-> Datasets")
    replace(small / "bptoolkit" / "data" / "idx.py", '"""Are all four', '_ = """Are all four')
    out = tmp_path / "out"
    built = build(small / "docs", out)
    assert built.returncode != 0
    assert [word for word in ("date.rst", "Datasets", "available") if word in built.stderr] == ["date.rst", "Datasets"]
    assert undocumented(out, [name for name in PUBLIC if ".data." in name]) == {"bptoolkit.data.available"}


def test_an_exported_name_that_does_not_exist_fails_the_build(small, tmp_path):
    replace(small / "bptoolkit" / "data" / "__init__.py", '"digits", ', '"digits", "letters", ')
    built = build(small / "docs", tmp_path / "out")
    assert built.returncode != 0
    assert "bptoolkit.data exports 'letters'" in built.stderr


def test_the_pages_load_nothing_from_elsewhere(site):
    """Neither scripts, nor styles, fonts or images: they are read without a network."""
    loaded = re.compile(r"""(?:src=|<link[^>]*href=|url\(|@import)\s*["']?(https?:)?//""")
    files = [file for kind in ("*.html", "*.css") for file in site.rglob(kind)]
    assert len(files) > len(PACKAGES)
    assert [file.name for file in files if loaded.search(file.read_text("utf-8"))] == []
    assert loaded.search('<script src="https://cdn.example/mathjax.js">')


SHORT = {"fp": "fixed_point", "cl": "continual"}
NAMED = re.compile(rf"(?<![\w./])({'|'.join([*PACKAGES, *SHORT])})\.([a-z_]\w*)", re.IGNORECASE)


def unknown(text: str) -> list[str]:
    """Names of our packages that stand in `code` and do not exist."""
    found = [match for code in re.findall(r"`([^`\n]+)`", text) for match in NAMED.finditer(code)]
    module = lambda short: importlib.import_module(f"bptoolkit.{SHORT.get(short, short)}")
    return [match[0] for match in found if not hasattr(module(match[1]), match[2])]


def test_names_that_the_pages_mention_exist():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
    current = [page for page in pages if page.name != "CHANGELOG.md"]
    assert [name for page in current for name in unknown(page.read_text("utf-8"))] == []
    assert unknown("`fp.picard()`, `learning.no_rule` and `cl.nor_this(1)`") == [
        "learning.no_rule",
        "cl.nor_this",
    ]
