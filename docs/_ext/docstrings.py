"""Docstrings as this package writes them, as reStructuredText.

The dialect: `code` in single backticks; the sections `Args:`, `Returns:`, `Raises:` and `Attributes:`, of `names: text`
lines or of text; an indented block is an equation or code and stays as it is; `field: text` lines in a record describe
its fields, and such lines indented under a sentence that ends in a colon are a list.  Everything else is text, in which
no character means more than itself: |λ| and z* are what they look like.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator

SECTIONS = {"Args": "Parameters", "Returns": "Returns", "Raises": "Raises", "Attributes": "Attributes"}
SECTION = re.compile(rf"({'|'.join(SECTIONS)}):$")
ENTRY = re.compile(r"(\*{0,2}[\w.]+(?:, [\w.]+)*): ")


def rest(doc: str, *, fields: Iterable[str] = ()) -> list[str]:
    """A docstring without its common indentation, in lines of reStructuredText."""
    blocks = re.split(r"\n\s*\n", doc)
    return [line for block in blocks for line in (*of_block(block.rstrip().splitlines(), set(fields)), "")]


def of_block(lines: list[str], fields: set[str]) -> Iterator[str]:
    """One block between blank lines."""
    if not lines:
        return
    first = next((i for i, line in enumerate(lines) if line.startswith("    ")), len(lines))
    inner = textwrap.dedent("\n".join(lines[first:] if not SECTION.match(lines[0]) else lines[1:])).splitlines()
    if section := SECTION.match(lines[0]):
        yield f":{SECTIONS[section[1]]}:"
        yield from (f"   {line}" for line in (bullets(inner) if ENTRY.match(inner[0]) else text(inner)))
    elif (entry := ENTRY.match(lines[0])) and set(entry[1].split(", ")) <= fields:
        yield from bullets(lines)
    else:
        yield from (*text(lines[:first]), "")
        yield from bullets(inner) if first and inner and ENTRY.match(inner[0]) else literal(inner)


def text(lines: list[str]) -> list[str]:
    """Running text."""
    return escape("\n".join(lines)).splitlines()


def literal(lines: list[str]) -> Iterator[str]:
    """An equation or code, as it stands."""
    if lines:
        yield from (".. code-block:: text", "", *(f"   {line}" for line in lines), "")


def bullets(lines: list[str]) -> Iterator[str]:
    """`names: text`, continued on indented lines, as a list."""
    entries = re.split(r"\n(?=\S)", "\n".join(lines))
    for entry in entries:
        names = ENTRY.match(entry)
        what = escape(textwrap.dedent(entry[names.end() :] if names else entry).replace("\n", " "))
        yield f"* **{escape(names[1])}**: {what}" if names else f"* {what}"


def escape(text: str) -> str:
    """Code becomes literal; outside of it nothing is markup."""
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"([\\*|_<>`])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [rf"\ ``{code}``\ " for code in parts[1::2]]  # an escaped space is none; it parts code from letters
    return "".join(parts)
