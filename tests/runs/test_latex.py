"""Tables for LaTeX: whole environments, as many cells as columns, nothing that LaTeX would trip over."""

import re

import pytest

from bptoolkit.runs import summarise
from bptoolkit.runs.latex import escaped, latex_tables
from bptoolkit.runs.tables import grids, remarks


@pytest.fixture
def written(make):
    def of(results):
        summary = summarise(results)
        drawn = grids(summary)
        return latex_tables(drawn, remarks(summary, drawn)), drawn

    return lambda **kind: of(make(**kind))


def test_every_line_has_a_cell_for_each_column(written):
    text, drawn = written()
    for body, grid in zip(re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, re.DOTALL), drawn, strict=True):
        specification = re.match(r"\{@\{\}([lr]+)@\{\}\}", body)
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 1 + len(grid.cells)
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(specification[1])}
        assert len(grid.columns) == len(specification[1])


def test_environments_and_braces_are_closed(written):
    text, _ = written()
    opened, closed = (re.findall(rf"\\{word}\{{(\w+)\}}", text) for word in ("begin", "end"))
    assert sorted(opened) == sorted(closed)
    bare = re.sub(r"\\[{}\\]", "", text)
    depth = 0
    for sign in bare:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    assert text.count("$") % 2 == 0


def test_the_numbers_are_those_of_the_grid_and_an_alarm_is_bold(written):
    text, drawn = written()
    assert drawn[0].cells[0][3].text.replace("±", r"$\pm$") in text
    assert r"\textbf{! 2.0 \%}" in text
    assert "Not run: recurrent/joint/domain." in text


def test_a_missing_number_keeps_the_mark_of_its_note(written):
    text, _ = written(tasks=1)
    assert r"--\textsuperscript{1}" in text
    assert r"{\footnotesize \textsuperscript{1} undefined with one task.}" in text


@pytest.mark.parametrize("sign", "&%$#_{}")
def test_what_means_something_to_latex_is_printed_as_it_is(sign):
    assert escaped(f"a{sign}b") == f"a\\{sign}b"


def test_backslash_tilde_and_circumflex_have_words():
    assert escaped("\\~^") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}"
