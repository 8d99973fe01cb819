"""The tables of a run for LaTeX, with the package booktabs."""

import re

from bptoolkit.runs.tables import Grid, Shown

__all__ = ["latex_tables"]

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "–": "--",
    "…": r"\dots{}",
}


def latex_tables(grids: list[Grid], remarks: list[str]) -> str:
    """Each grid as a `table` environment, and under the first what must be read with all of them.

    Needs `\\usepackage{booktabs}`; text is UTF-8, which LaTeX takes since 2018.
    """
    pages = [table(grid, remarks if i == 0 else []) for i, grid in enumerate(grids)]
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(pages)


def table(grid: Grid, remarks: list[str]) -> str:
    """One grid, and the remarks in small letters below it."""
    columns = "".join("r" if column.number else "l" for column in grid.columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(grid.title)}}}",
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        line([escaped(column.title) for column in grid.columns]),
        r"\midrule",
        *(line([cell_of(grid, cell) for cell in row]) for row in grid.cells),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip{{\footnotesize {escaped(remark)}}}" for remark in remarks),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def line(cells: list[str]) -> str:
    """One line of a tabular."""
    return " & ".join(cells) + r" \\"


def cell_of(grid: Grid, cell: Shown) -> str:
    """The cell's text; an alarm is bold."""
    text = escaped(grid.text(cell))
    return rf"\textbf{{{text}}}" if cell.alarm else text


def escaped(text: str) -> str:
    """Text as LaTeX prints it.

    >>> print(escaped("50 % ± 2¹ of x_1"))
    50 \\% $\\pm$ 2\\textsuperscript{1} of x\\_1
    """
    raised = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
    text = "".join(SPECIAL.get(sign, sign) for sign in text)
    return re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda mark: rf"\textsuperscript{{{mark[0].translate(raised)}}}", text)
