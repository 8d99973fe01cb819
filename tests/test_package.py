"""The package as it is installed: the wheel is whole, works from another folder, and leaves JAX as it found it."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import bptoolkit

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "bptoolkit"
MODULES = sorted(SOURCE.rglob("*.py"))
LAYERS = ["continual", "data", "fixed_point", "learning", "models", "runs"]
HEAVY = ["h5netcdf", "jinja2", "matplotlib", "orbax", "pooch", "rich", "sklearn", "tyro", "xarray"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/**/*.md")]
IMPORT_ALL = f"import bptoolkit, {', '.join(f'bptoolkit.{layer}' for layer in LAYERS)}"


def python(code: str, folder: Path, path: Path | None = None) -> str:
    """What a fresh interpreter in `folder` prints; `path` comes before the installed packages."""
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}" if path else code
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, capture_output=True, check=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    """Among them py.typed and the template of the report, which no import would miss."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert inside == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"bptoolkit/py.typed", "bptoolkit/runs/templates/report.html.j2"} <= inside


@pytest.mark.slow
def test_the_installed_wheel_settles_a_network_from_another_folder(wheel, tmp_path):
    """z = z/2 + 1 has the fixed point 2, and d z*/d 1 = 1/(1 − 1/2) = 2."""
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, capture_output=True, check=True)
    code = f"""{IMPORT_ALL}
import jax
from bptoolkit import fixed_point as fp
settle = lambda b: fp.implicit()(lambda b, z: z / 2 + b, b, 0.0).value
value, slope = jax.value_and_grad(settle)(1.0)
print(bptoolkit.__file__, f"{{value:.3f}} {{slope:.3f}}")
"""
    assert python(code, tmp_path, target).split() == [str(target / "bptoolkit" / "__init__.py"), "2.000", "2.000"]


def test_importing_everything_leaves_the_settings_of_jax_alone(tmp_path):
    code = f"import jax; before = dict(jax.config.values)\n{IMPORT_ALL}\nprint(before == jax.config.values)"
    assert python(code, tmp_path).strip() == "True"


def test_importing_everything_loads_nothing_heavy(tmp_path):
    """Readers, plots and terminals are imported by the functions that need them."""
    code = f"{IMPORT_ALL}\nprint(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    assert python(f"import sys\n{code}", tmp_path).split() == []


def test_the_source_nowhere_changes_the_settings_of_jax():
    """`runs/environment.py` reads some for the record; a script that changes them hands `jax.config` over itself."""
    named = {p.relative_to(SOURCE).as_posix(): jax_config_in(ast.parse(p.read_text("utf-8"))) for p in MODULES}
    assert {name for name, found in named.items() if found} == {"runs/environment.py"}
    assert set(named["runs/environment.py"]) == {"getattr(jax.config, f'jax_{name}')"}


def jax_config_in(tree: ast.AST) -> list[str]:
    """Each import of JAX's config, and each smallest expression or statement around `jax.config`."""
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "jax"]
    around = [node for node in ast.walk(tree) if any(map(is_jax_config, ast.iter_child_nodes(node)))]
    return [ast.unparse(node) for node in imported if "config" in {a.name for a in node.names}] + [
        ast.unparse(node) for node in around
    ]


def is_jax_config(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.config"


@pytest.mark.parametrize(
    "code", ["jax.config.update('jax_enable_x64', True)", "jax.config.jax_x = 1", "from jax import config"]
)
def test_a_change_of_the_settings_would_be_found(code):
    assert jax_config_in(ast.parse(code))


def test_one_version_is_named_everywhere():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    logged = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert cited is not None
    assert logged is not None
    assert {bptoolkit.__version__, metadata.version("bptoolkit"), cited[1], logged[1]} == {declared}


def test_the_lock_names_no_host():
    """It has to install from whichever index the machine is set up for."""
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert "--hash=sha256:" in lock
    assert "://" not in lock


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_points_to_exists(page):
    """Links to files, and paths into the repository that stand in `code`."""
    text = page.read_text("utf-8")
    links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    paths = [ROOT / path for path in re.findall(r"`((?:bptoolkit|docs|tests|scripts|experiments)/[\w./-]*)`", text)]
    assert [str(path) for path in (*links, *paths) if not path.exists()] == []
