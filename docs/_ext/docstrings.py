"""Docstrings as this package writes them, as reStructuredText.

The dialect: `code` in single backticks; `Args:`, `Returns:`, `Raises:` and `Attributes:` as napoleon knows them; an
indented block is an equation or code and stays as it is; `field: what it is` lines in a record describe its fields, and
`name: text` lines, indented under a sentence that ends in a colon, a list.  Everything else is text, in which no
character means more than itself: |λ| and z* are what they look like.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator

from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring

SECTION = re.compile(r"(Args|Returns|Raises|Attributes):$")
ENTRY = re.compile(r"(\w+(?:, \w+)*): ")


def rest(doc: str, env: BuildEnvironment, *, fields: Iterable[str] = ()) -> list[str]:
    """A docstring without its common indentation, in lines of reStructuredText."""
    blocks = [line for block in re.split(r"\n\s*\n", doc) for line in (*of_block(block.rstrip(), set(fields)), "")]
    return GoogleDocstring("\n".join(blocks), env.config).lines()


def of_block(block: str, fields: set[str]) -> Iterator[str]:
    """One block between blank lines."""
    lines = block.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("    ")), len(lines))
    if not lines:
        return
    if SECTION.match(lines[0]):
        yield lines[0]
        yield from (escape(line) for line in lines[1:])
    elif (entry := ENTRY.match(lines[0])) and set(entry[1].split(", ")) <= fields:
        yield from bullets(lines)
    else:
        yield from (escape("\n".join(lines[:first]))).splitlines()
        inner = textwrap.dedent("\n".join(lines[first:])).splitlines()
        yield ""
        yield from bullets(inner) if first and inner and ENTRY.match(inner[0]) else literal(inner)


def literal(lines: list[str]) -> Iterator[str]:
    """An equation or code, as it stands."""
    if lines:
        yield from (".. code-block:: text", "", *(f"   {line}" for line in lines), "")


def bullets(lines: list[str]) -> Iterator[str]:
    """`name: text`, continued on indented lines, as a list."""
    yield ""
    for line in lines:
        entry = ENTRY.match(line)
        yield f"* ``{entry[1]}``: {escape(line[entry.end() :])}" if entry else f"  {escape(line.strip())}"


def escape(text: str) -> str:
    """Code becomes literal; outside of it nothing is markup."""
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"([\\*|_<>`])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"\\ ``{code}``\\ " for code in parts[1::2]]  # an escaped space is none; it parts code from letters
    return "".join(parts)
