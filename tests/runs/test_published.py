"""A published figure beside measured ones: worked examples, and what must not be said."""

import json
import math

import numpy as np
import pytest

from bptoolkit.runs.published import Column, Figure, Table, as_data, compared, from_data, paired, sem, text_table

TABLE = Table(
    "A table",
    "Someone (2020)",
    ("A note.",),
    {"Class": Column("class", lambda result: result)},
    {"ER": {"Class": Figure(88.79, 0.20, "3p")}, "SI": {"Class": Figure(21.2, 0.57, "rec")}},
    lambda method, scenario: None,
    lambda method, scenario: (),
    {},
)


def test_the_standard_error_is_s_over_root_n():
    values = np.random.default_rng(0).normal(size=7)
    assert sem(values) == pytest.approx(values.std(ddof=1) / math.sqrt(7))
    assert math.isnan(sem(values[:1]))


def test_a_difference_is_told_in_combined_standard_errors():
    """Values 1 and 3: mean 2, SEM √(1/1) = 1.  Published 5 ± 2 … 3/√5 = 1.34 apart."""
    cell = compared(Figure(5.0, 2.0, "3p"), {0: 1.0, 1: 3.0})
    assert (cell.measured, cell.sem, cell.n, cell.difference) == (2.0, 1.0, 2, -3.0)
    assert cell.z == pytest.approx(-3 / math.sqrt(5))
    assert cell.near is True  # within 2 · √5 = 4.5 points


@pytest.mark.parametrize(("measured", "near"), [(90.2, True), (90.4, False), (87.4, True), (87.2, False)])
def test_near_is_two_combined_errors_or_one_and_a_half_points(measured, near):
    values = {0: measured - 0.1, 1: measured + 0.1}  # SEM 0.1; 2 · √(0.1² + 0.2²) = 0.45 < 1.5
    assert compared(Figure(88.79, 0.20, "3p"), values).near is near


@pytest.mark.parametrize(("seeds", "both"), [(1, math.sqrt(4 + 8)), (2, math.sqrt(4 + 4)), (8, math.sqrt(4 + 1))])
def test_published_seeds_without_a_standard_error_are_taken_to_scatter_as_the_measured_ones(seeds, both):
    """So that one published seed is judged as one more draw, not as a truth."""
    values = {0: 38.0, 1: 42.0}  # s = √8, SEM 2
    cell = compared(Figure(40 + 1.99 * both, None, "rec"), values, seeds=seeds)
    assert cell.z == pytest.approx(-1.99)
    assert cell.near is True
    assert compared(Figure(40 + 2.01 * both, None, "rec"), values, seeds=seeds).near is False


def test_one_seed_has_no_error_and_no_verdict():
    one = compared(Figure(88.79, 0.20, "3p"), {0: 88.0})
    assert one.difference == pytest.approx(-0.79)
    assert math.isnan(one.z)
    assert one.near is None
    none = compared(Figure(88.79, 0.20, "3p"), {})
    assert none.n == 0
    assert math.isnan(none.measured)
    assert none.near is None


def test_the_text_shows_marks_counts_and_what_is_not_to_the_letter():
    cells = {
        ("ER", "Class"): compared(TABLE.published["ER"]["Class"], {0: 88.0, 1: 89.0}),
        ("SI", "Class"): compared(TABLE.published["SI"]["Class"], {0: 30.0, 1: 30.2}, ("half the steps",)),
    }
    text = text_table(TABLE, cells)
    assert "88.79 ± 0.20 [3p]" in text
    assert "88.50 ± 0.50   2   -0.29   -0.5 near" in text
    assert "APART *" in text
    assert "- * SI/Class: half the steps" in text
    assert "[rec] and [fig] are unverified" in text
    assert "unverified" not in text_table(TABLE, {("ER", "Class"): cells["ER", "Class"]})


def test_the_data_is_plain_and_null_where_nothing_is():
    cells = {("ER", "Class"): compared(TABLE.published["ER"]["Class"], {})}
    data = json.loads(json.dumps(as_data(TABLE, cells, {"key": 0}), allow_nan=False))
    (cell,) = data["cells"]
    assert cell["measured"] is cell["sem"] is cell["near"] is None
    assert cell["published"] == {"mean": 88.79, "sem": 0.20, "mark": "3p"}
    assert (cell["n"], cell["values"]) == (0, {})


def test_a_cell_is_read_as_it_was_written():
    cells = {
        ("ER", "Class"): compared(TABLE.published["ER"]["Class"], {0: 88.0, 2: 89.0}, ("half the steps",)),
        ("SI", "Class"): compared(None, {1: 3.0}),
    }
    text = json.dumps(as_data(TABLE, cells, {}), allow_nan=False)
    read = {(cell["method"], cell["column"]): from_data(cell) for cell in json.loads(text)["cells"]}
    assert as_data(TABLE, read, {}) == as_data(TABLE, cells, {})
    assert read["ER", "Class"] == cells["ER", "Class"]


def test_beside_another_table_what_seeds_share_cancels():
    """Seeds 0, 1 and 2 scatter by 20 points, and the differences are 1, 2 and 3: 2 ± 1/√3.  Unpaired it would be
    nothing; a seed that only the other table has does not count."""
    theirs = {0: 60.0, 1: 70.0, 2: 80.0, 7: 0.0}
    cell = paired(theirs, {2: 83.0, 0: 61.0, 1: 72.0}, ("a deviation",))
    assert (cell.published.mean, cell.published.mark) == (70.0, "own")
    assert (cell.measured, cell.n, cell.values) == (72.0, 3, {0: 61.0, 1: 72.0, 2: 83.0})
    assert cell.difference == pytest.approx(2.0)
    assert cell.z == pytest.approx(2 * math.sqrt(3))
    assert (cell.near, cell.deviations) == (None, ("a deviation",))
    assert abs(compared(cell.published, cell.values).z) < 0.5


def test_without_the_same_seeds_there_is_no_difference():
    cell = paired({5: 60.0}, {0: 61.0, 1: 63.0})
    assert cell.published is None
    assert cell.measured == 62.0
    assert math.isnan(cell.difference)
    one = paired({0: 60.0}, {0: 61.0})
    assert (one.difference, one.published.sem) == (1.0, None)
    assert math.isnan(one.z)
    assert "[own]" in text_table(TABLE, {("ER", "Class"): one})
    assert "taken to scatter" not in text_table(TABLE, {("ER", "Class"): one})
