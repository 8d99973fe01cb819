"""What the report of one run and the comparison of several have in common: templates, pictures, and the script.

A page stands alone: style, script and figures are inside, it asks the network for nothing, and its own policy forbids
any script but that one.
"""

import base64
import hashlib
from importlib.resources import files
from typing import Any, NamedTuple

from bptoolkit.runs.figures.look import Drawn, compact_svg, darkened
from bptoolkit.runs.tables import Grid

__all__ = ["Picture", "picture", "render", "without_lone"]


class Picture(NamedTuple):
    """A figure inside the page, four times: the style sheet shows the one that fits page and paper."""

    images: dict[str, str]  # class of the image → data URI
    alt: str
    caption: str


def picture(drawn: Drawn, alt: str, caption: str) -> Picture:
    """A figure for wide and narrow, light and dark pages; paper is wide and light."""
    light = {layout: compact_svg(figure) for layout, figure in drawn._asdict().items()}
    images = {f"{layout} light": uri(drawing) for layout, drawing in light.items()}
    images |= {f"{layout} dark": uri(darkened(drawing)) for layout, drawing in light.items()}
    return Picture(images, alt, caption)


def uri(drawing: str) -> str:
    """An SVG as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode("ascii")


def without_lone(grid: Grid, title: str = "Scenario") -> Grid:
    """The table without a column of labels that says the same in every row."""
    at = [i for i, column in enumerate(grid.columns) if column.title == title]
    if not at or len({row[at[0]].text for row in grid.cells}) > 1:
        return grid
    kept = [i for i in range(len(grid.columns)) if i != at[0]]
    return grid._replace(columns=[grid.columns[i] for i in kept], cells=[[row[i] for i in kept] for row in grid.cells])


def render(template: str, **context: Any) -> str:
    """Fill a template of this package; all text is escaped, a missing name is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    folder = files("bptoolkit.runs").joinpath("templates")
    read = lambda name: folder.joinpath(name).read_text(encoding="utf-8")
    script = read("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    html = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return html.get_template(template).render(context, script=Markup(script), script_hash=f"sha256-{digest}")
