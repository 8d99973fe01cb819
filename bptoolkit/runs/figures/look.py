"""How figures look: colours, markers, panels that wrap, and the same drawing on a dark page.

Matplotlib's object interface only: no `pyplot`, no window, no state left behind.  Colours are Okabe and Ito's (2008),
told apart by every kind of colour vision; markers and hatches say the same again.
"""

import colorsys
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PAPER, SOFT = "#1b1f24", "#ffffff", "#646b73"
DARK = {INK: "#e6e9ed", PAPER: "#1e2329", SOFT: "#a3adb8"}  # the same on a dark page
ON_DARK, ON_LIGHT = "#fefefe", "#010101"  # on a coloured cell, which is the same on either page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6b4fa0")
MARKERS = "osD^vPX"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")
SVG = {"format": "svg", "metadata": {"Date": None}}  # no date: the same figure is the same file
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,  # not pure black, which SVG leaves unsaid
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.hashsalt": "bptoolkit",
}
FONTS = "system-ui, 'DejaVu Sans', 'Liberation Sans', sans-serif"  # of the reader, in a page
MANY = 10  # tasks up to which each has its number on an axis, and in a heat map


class Drawn(NamedTuple):
    """One figure in both layouts: wide for files and screens, narrow for a phone."""

    wide: "Figure"
    narrow: "Figure"


def style() -> AbstractContextManager[None]:
    """Our settings of matplotlib while a figure is drawn, and the user's again afterwards."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def panels(count: int, columns: int, size: tuple[float, float], extra: float = 0.0) -> "tuple[Figure, list[Axes]]":
    """A figure of `count` panels of this size (inches) in rows of `columns`, and `extra` inches below for a legend."""
    from matplotlib.figure import Figure

    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1] + extra), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def outer_labels(axes: "Sequence[Axes]", columns: int, x: str, y: str) -> None:
    """Name the axes, and number them, at the left and at the bottom only."""
    for i, axis in enumerate(axes):
        if i % columns == 0:
            axis.set_ylabel(y)
        else:
            axis.tick_params(labelleft=False)
        if i + columns >= len(axes):
            axis.set_xlabel(x)
        else:
            axis.tick_params(labelbottom=False)


def legend(figure: "Figure", axis: "Axes", columns: int) -> None:
    """The labels of one panel, below all of them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)


def pick(values: "tuple[str, ...] | str", i: int) -> str:
    """The i-th value, starting again after the last."""
    return values[i % len(values)]


def thinned(tasks: np.ndarray) -> np.ndarray:
    """Task numbers for an axis: all, or every fifth of many."""
    return tasks if len(tasks) <= MANY else tasks[4::5]


def compact_svg(figure: "Figure") -> str:
    """The figure as SVG for a page: text as text, paths to a hundredth of a point, no metadata, no indentation."""
    import matplotlib

    out = io.StringIO()
    with style(), matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(out, **SVG)
    drawing = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", out.getvalue(), flags=re.DOTALL)
    drawing = re.sub(r"font-family: [^;]*; | transform=\"rotate\(-0 [^\"]*\"", "", drawing)
    drawing = re.sub(r'(?<= [dxy]=")[^"]*', lambda where: re.sub(r"(\.\d\d)\d+", r"\1", where[0]), drawing)
    drawing = drawing.replace("</style>", f"text{{font-family: {FONTS}}}</style>", 1)
    return re.sub(r"\s+", " ", drawing)


def darkened(drawing: str) -> str:
    """The same SVG for a dark page: each colour keeps its hue and turns its lightness over.

    Images, and what is written on coloured cells, stay.
    """
    return re.sub(r"(?<=(?:fill|roke)(?:: |=\"))#[0-9a-fA-F]{6}", lambda found: _turned(found[0].lower()), drawing)


def _turned(colour: str) -> str:
    if colour in DARK or colour in (ON_DARK, ON_LIGHT):
        return DARK.get(colour, colour)
    hue, light, full = colorsys.rgb_to_hls(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))
    turned = max(0.95 - 0.8 * light, 0.62)  # a line is never too dark to be seen
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, turned, full))
