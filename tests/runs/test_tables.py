"""Tables say what the summary says, fit the terminal, and hide neither a missing number nor a failed settling."""

import re

import numpy as np
import pytest
from rich.console import Console

from bptoolkit.runs import markdown_table, summarise, terminal_table
from bptoolkit.runs.tables import estimate, measured, share, signed, superscript


@pytest.fixture
def summary(results):
    return summarise(results)


def printed(summary, width=100):
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(terminal_table(summary))
    return capture.get()


def lines_of(summary):
    """The cells of every table line of the Markdown."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown_table(summary).splitlines()]


def value(cell):
    return float(cell.split()[0].replace("−", "-"))


def entry(mean, half_width=0.01, reason=None):
    return {"mean": mean, "half_width": half_width, "n": 4, "reason": reason}


def test_markdown_holds_the_numbers_of_the_summary(summary):
    found = {tuple(line[:3]): line[3:] for line in lines_of(summary)[2 : 2 + len(summary["rows"])]}
    names = ["average_accuracy", "learning_accuracy", "forgetting", "backward_transfer", "train_test_gap"]
    for row in summary["rows"]:
        cells = found[row["scenario"], row["net"], row["strategy"]]
        for cell, name in zip(cells, names, strict=True):
            assert value(cell) == pytest.approx(100 * row[name]["mean"], abs=0.051)
            assert float(cell.split(" ± ")[1]) == pytest.approx(100 * row[name]["half_width"], abs=0.051)


def test_every_line_of_a_markdown_table_has_the_same_number_of_cells(summary):
    for table in markdown_table(summary).split("\n\n")[:3]:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_bar_in_a_name_does_not_break_the_markdown(results):
    summary = summarise(results.assign_coords(strategy=["a|b", "ewc", "replay", "joint"]))
    assert "| a/b |" in markdown_table(summary)


@pytest.mark.parametrize("width", [100, 140])
def test_the_terminal_shows_whole_words_and_all_numbers(summary, width):
    text = printed(summary, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for line in lines_of(summary):
        for cell in line[1:] if "--" not in line[0] and line[0] in ("class", "domain") else ():
            assert cell.strip("*") in text
    assert text.count("recurrent") == 3 * 7 + 1  # seven rows in three tables, and the one that was not run


def test_settling_is_shown_for_every_net_that_settles_and_for_no_other(summary):
    table = printed(summary).split("Settling")[1].split("Cost")[0]
    assert len(re.findall("recurrent", table)) == 7
    assert "static" not in table


def test_without_a_net_that_settles_there_is_no_table_of_settling(results):
    assert "unconverged" not in markdown_table(summarise(results.sel(net=["static"])))


def test_plasticity_and_tests_within_tasks_have_tables_where_they_were_measured(results):
    shares = results["accuracy"].isel(on=0, drop=True).fillna(0)
    probed = results.assign(dormant=shares, effective_rank=9 * shares, weight_norm=shares)
    text = markdown_table(summarise(probed))
    assert "Dormant, first task" in text
    assert "effective rank of the last hidden layer" in text
    assert "Stability gap" not in text
    run = ["net", "strategy", "scenario"]
    within = {
        "within": ([*run, "seed", "evaluation", "on"], np.full((2, 4, 2, 4, 10, 5), 0.75)),
        "end": ([*run, "task"], np.broadcast_to(np.arange(1, 10, 2.0), (2, 4, 2, 5))),
    }
    text = markdown_table(summarise(results.assign(within)))
    assert "| Stability gap | Minimum accuracy | Worst-case accuracy |" in text
    assert "| 0.00 ± 0.00 | 75.00 ± 0.00 | 75.00 ± 0.00 |" in text
    assert "Dormant" not in text


def test_a_diagnosis_has_a_table_where_there_is_one(results):
    names = ("plain", "masked", "nearest_mean", "linear_probe", "calibration_error", "brier_score")
    quarter = 0 * results["accuracy"].fillna(0) + 0.25
    text = markdown_table(summarise(results.assign(dict.fromkeys(names, quarter))))
    assert "| Plain | Masked | Nearest mean | Linear probe | Calibration error |" in text
    assert f"|{' 25.00 ± 0.00 |' * 5}" in text
    assert "fitted to them on training rows of all tasks" in text
    assert "Linear probe" not in markdown_table(summarise(results))


def test_a_failed_settling_is_marked_in_every_table(summary):
    assert "**! 2.0 %**" in markdown_table(summary)
    assert "! 2.0 %" in printed(summary)
    assert "did not converge" in printed(summary)


def test_settling_that_always_converged_raises_no_alarm(results):
    summary = summarise(results.assign(unconverged=0 * results["unconverged"]))
    assert "!" not in markdown_table(summary)
    assert "0 %" in markdown_table(summary)


@pytest.mark.parametrize(
    ("mean", "text", "alarm"),
    [(0, "0 %", False), (1e-9, "< 0.1 %", True), (0.001, "0.1 %", True), (1, "100.0 %", True)],
)
def test_no_share_is_too_small_to_be_seen(mean, text, alarm):
    shown = share(entry(mean))
    assert (shown.text, shown.alarm) == (text, alarm)


@pytest.mark.parametrize(
    ("mean", "half_width", "text"),
    [
        (0.4567, 0.0123, "45.7 ± 1.2"),
        (0.19891, 0.0002, "19.89 ± 0.02"),  # Class-IL: the interval must not show as 0
        (-0.65, 0.02, "−65.0 ± 2.0"),
        (-0.0001, 0.02, "0.0 ± 2.0"),
        (0.5, None, "50.0 ± –"),
        (None, None, "–"),
    ],
)
def test_an_estimate_is_shown_with_its_interval(mean, half_width, text):
    assert estimate(entry(mean, half_width), 100.0).text == text


@pytest.mark.parametrize(("number", "text"), [(0.4212, "0.42"), (12.34, "12.3"), (1234.5, "1,234"), (0, "0.00")])
def test_measured_numbers_keep_about_three_digits(number, text):
    assert measured(number) == text


def test_zero_has_no_sign():
    assert signed(-0.04, 1) == "0.0"


def test_superscripts_are_digits():
    assert superscript(120) == "¹²⁰"


@pytest.mark.parametrize("kind", [{"tasks": 1}, {"seeds": 1}, {"tasks": 1, "seeds": 1}])
@pytest.mark.parametrize("draw", [markdown_table, printed])
def test_every_dash_has_a_numbered_reason(make, draw, kind):
    """Footnotes and marks are the same set, and no dash stands without a mark."""
    text = draw(summarise(make(**kind)))
    marks = set(re.findall("[¹²³⁴⁵⁶⁷⁸⁹]", text))
    noted = {mark for mark in marks if re.search(rf"^(- )?{mark} \w", text, re.MULTILINE)}
    assert marks == noted != set()
    assert not re.search(r"–(?![¹²³⁴⁵⁶⁷⁸⁹]|test)", text)


def test_complete_results_have_no_footnotes(summary):
    assert not re.search("[¹²³⁴⁵⁶⁷⁸⁹]", markdown_table(summary))


def test_what_diverged_is_said(summary):
    summary = summary | {"diverged": [["static", "naive", "class", 1]]}
    assert "NaN or infinite are left out: static/naive/class (1 of 4)." in printed(summary).replace("\n", " ")


def test_what_was_not_run_is_said(summary):
    assert "Not run: recurrent/joint/domain." in printed(summary)


def test_a_run_of_which_nothing_was_finished_still_has_tables(results):
    summary = summarise(results.assign(accuracy=results["accuracy"] * float("nan")))
    assert "Not run: static/naive/class" in printed(summary).replace("\n", " ")
