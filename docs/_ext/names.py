"""The public names of the package, read from its sources: nothing is imported, and no name is listed twice."""

import ast
import builtins
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = ("fixed_point", "models", "learning", "continual", "data", "runs", "types")
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Name(NamedTuple):
    """One public name: where it is imported from, and where its source stands."""

    package: str
    name: str
    module: str  # that defines it
    node: Definition
    doc: str  # "" where there is none


def path_of(module: str) -> Path:
    """The file of a module or package."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def source(module: str) -> tuple[str, ast.Module]:
    """Its text, and the same parsed."""
    text = path_of(module).read_text("utf-8")
    return text, ast.parse(text)


@cache
def public(module: str) -> list[Name]:
    """Every public name of a package or module, those of one file together and in its order."""
    found = [name for exports in exported(module) for name in resolve(module, exports)]
    return sorted(found, key=lambda name: (name.module, name.node.lineno))


def exported(module: str) -> list[str]:
    """`__all__`; in a module without one, every public name it defines."""
    body = source(module)[1].body
    lists = [
        ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign | ast.AugAssign) and ast.unparse(node).startswith("__all__")
    ]
    if lists:
        return [name for part in lists for name in part]
    defined = [name for node in body if isinstance(node, Definition) for name in bound(node)]
    return [name for name in defined if not name.startswith("_")]


def resolve(module: str, name: str) -> Iterator[Name]:
    """The definition of a name: here, or where this module imports it from; of a module, all that it exports."""
    body = source(module)[1].body
    place, node = next(((i, node) for i, node in enumerate(body) if name in bound(node)), (0, None))
    if isinstance(node, Definition):
        yield Name(module, name, module, node, docstring(body, place))
    elif isinstance(node, ast.ImportFrom) and path_of(f"{node.module}.{name}").exists():
        yield from public(f"{node.module}.{name}")
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (found._replace(package=module) for found in resolve(node.module, name))
    else:
        raise ValueError(f"{module} exports {name!r}, which is neither defined nor imported there.")


def bound(node: ast.AST) -> list[str]:
    """The names that a statement binds."""
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.ImportFrom() | ast.Import():
            return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    return []


def docstring(body: list[ast.stmt], place: int) -> str:
    """That of a function or class; of an alias, the string that follows it."""
    node = body[place]
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return ast.get_docstring(node) or ""
    match body[place + 1 : place + 2]:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return text.strip()
    return ""


def alias(module: str, name: str) -> tuple[str, ast.expr] | None:
    """The module and the right side of a type alias, as seen from a module that defines or imports it."""
    for node in source(module)[1].body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=bound_name), annotation=ast.Name(id="TypeAlias"), value=ast.expr()):
                if bound_name == name:
                    return module, node.value
            case ast.ImportFrom(module=str(origin)) if name in bound(node) and origin.startswith("bptoolkit"):
                return alias(origin, name) if not path_of(f"{origin}.{name}").exists() else None
    return None


@cache
def index() -> dict[str, str]:
    """Public names as people write them, `anderson`, `solvers.anderson` or `fp.anderson`, and their full names.

    What two packages call by one name is not here without its package.
    """
    usual = {"fixed_point": "fp", "continual": "cl"}
    found: dict[str, dict[Definition, str]] = {}
    for name in (name for package in PACKAGES for name in public(f"bptoolkit.{package}")):
        full = f"{name.package}.{name.name}"
        parts = full.split(".")
        written = {".".join(parts[i:]) for i in range(len(parts))}
        written |= {f"{short}.{name.name}" for short in (name.module.rpartition(".")[2], usual.get(parts[1], parts[1]))}
        for short in written:
            found.setdefault(short, {}).setdefault(name.node, full)
    return {short: full for short, (full, *others) in ((s, f.values()) for s, f in found.items()) if not others}


@cache
def elsewhere() -> frozenset[str]:
    """Names in our signatures that have no entry: Python's, other libraries', and private ones."""
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "bptoolkit").rglob("*.py")]
    return frozenset(dir(builtins)) | {name for tree in trees for node in ast.walk(tree) for name in bound(node)}
