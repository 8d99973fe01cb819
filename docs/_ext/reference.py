"""The reference of the public names, made from the sources.

`.. public:: bptoolkit.models` documents every name of that package's `__all__`, gathered by the file that defines it:
the docstring, and the signature or the fields as the source has them, so that shapes (`Float[Array, "k n"]`), defaults
and comments are there.  (Sphinx's autodoc shows what is left of them after the import: resolved aliases, and none of
the comments.)
"""

import ast
import copy
import textwrap
from collections.abc import Iterator

from docstrings import rest
from docutils import nodes
from docutils.parsers.rst import Directive
from names import ROOT, Definition, Name, alias, bound, elsewhere, index, path_of, public, source
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.parsing import nested_parse_to_nodes


class Public(Directive):
    """`.. public:: module`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes of the page."""
        module = self.arguments[0]
        text = "\n".join(page(module))
        return nested_parse_to_nodes(self.state, text, source=str(path_of(module)), allow_section_headings=True)


def page(module: str) -> Iterator[str]:
    """The docstring of a package and all its public names by file, as reStructuredText."""
    yield from rest(ast.get_docstring(source(module)[1]) or "")
    file = module
    for name in public(module):
        if name.module != file:
            yield from heading(name.module)
        file = name.module
        yield from entry(name)


def heading(module: str) -> Iterator[str]:
    """A section for a file, opened by the file's docstring."""
    title = module.rpartition(".")[2]
    yield from ("", title, "-" * len(title), "", f"``{path_of(module).relative_to(ROOT)}``", "")
    yield from rest(ast.get_docstring(source(module)[1]) or "")
    yield ""


def entry(name: Name) -> Iterator[str]:
    """One name: its signature, its docstring, and for what is no function the lines of its source."""
    kind, head, code = describe(name)
    body = [*rest(name.doc, fields=fields(name.node)), ""]
    if code:
        body += [".. code-block:: python", "", *textwrap.indent(code, "   ").splitlines(), ""]
    for method in methods(name.node):
        body += [*entry_of_method(method, name.module), ""]
    yield from ("", f".. py:currentmodule:: {name.package}", "", f".. py:{kind}:: {name.name}{head}", "")
    yield from textwrap.indent("\n".join(body), "   ").splitlines()


def describe(name: Name) -> tuple[str, str, str]:
    """The kind of entry, the signature, and the lines of source that are shown."""
    match name.node:
        case ast.FunctionDef():
            return "function", signature(name.node, name.module), ""
        case ast.ClassDef(bases=bases):
            kind = "exception" if any(ast.unparse(base).endswith(("Error", "Exception")) for base in bases) else "class"
            inside = [node for node in name.node.body if isinstance(node, ast.Assign | ast.AnnAssign)]
            return kind, "", lines(name.module, inside[0], inside[-1]) if inside else ""
    return "data", "", lines(name.module, name.node, name.node)


def lines(module: str, first: ast.stmt, last: ast.stmt) -> str:
    """The source from one statement to another, with its comments."""
    text = source(module)[0].splitlines()[first.lineno - 1 : last.end_lineno]
    return textwrap.dedent("\n".join(text))


def signature(node: ast.FunctionDef, module: str) -> str:
    """Arguments and result as the source has them, without self, and forward references without quotes."""
    arguments = copy.deepcopy(node.args)
    arguments.args = [argument for argument in arguments.args if argument.arg != "self"]
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg) and argument.annotation:
            argument.annotation = ast.Name(written(argument.annotation, module))
    return f"({ast.unparse(arguments)})" + (f" -> {written(node.returns, module)}" if node.returns else "")


def written(annotation: ast.expr, module: str) -> str:
    """An annotation in words that have an entry: aliases without one give way to what they stand for."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return ast.unparse(Spelt(module).visit(copy.deepcopy(annotation)))


class Spelt(ast.NodeTransformer):
    """Replaces the aliases of a module, or those that it imports, unless they are public."""

    def __init__(self, module: str):
        self.module = module

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """One name."""
        found = None if node.id in index() else alias(self.module, node.id)
        return node if found is None else Spelt(found[0]).visit(copy.deepcopy(found[1]))


def fields(node: Definition) -> set[str]:
    """Of a record or an enumeration; none of a function."""
    inside = node.body if isinstance(node, ast.ClassDef) else []
    return {name for part in inside if not isinstance(part, ast.FunctionDef) for name in bound(part)}


def methods(node: Definition) -> list[ast.FunctionDef]:
    """The public methods and properties of a class."""
    inside = node.body if isinstance(node, ast.ClassDef) else []
    return [part for part in inside if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")]


def entry_of_method(node: ast.FunctionDef, module: str) -> Iterator[str]:
    """A method, or a property with its type."""
    if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list) and node.returns:
        yield from (f".. py:property:: {node.name}", f"   :type: {written(node.returns, module)}")
    else:
        yield f".. py:method:: {node.name}{signature(node, module)}"
    yield ""
    yield from textwrap.indent("\n".join(rest(ast.get_docstring(node) or "")), "   ").splitlines()


def link(app: Sphinx, env: BuildEnvironment, page: str, name: str, shown: nodes.Element) -> nodes.Element | None:
    """To the entry of a public name, as people write it; None if it is none, or its page is not there."""
    full = index().get(name)
    return full and env.get_domain("py").resolve_xref(env, page, app.builder, "obj", full, pending_xref(), shown)


def link_type(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element) -> nodes.Element | None:
    """A name in a signature: linked if it is ours, text if it is another's; what is neither stays an error."""
    name = node["reftarget"]
    known = name in index() or name.partition(".")[0] in elsewhere()
    return link(app, env, node["refdoc"], name, shown) or (shown if known else None)


class LinkCode(SphinxPostTransform):
    """`picard()` in running text leads to its entry, wherever a page or a docstring writes it."""

    default_priority = 5

    def run(self, **kwargs) -> None:
        """Replace what names a public thing, except in titles and links."""
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().partition("(")[0]
            found = link(self.app, self.env, self.env.docname, name, literal.deepcopy())
            if found and not isinstance(literal.parent, nodes.reference | nodes.title):
                literal.replace_self(found)


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_directive("public", Public)
    app.add_post_transform(LinkCode)
    app.connect("missing-reference", link_type)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
