"""Figures draw the numbers of the results, say where chance is, and leave matplotlib as they found it."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from bptoolkit.runs import interval, save_figures, summarise
from bptoolkit.runs.figures import STYLE, figure, figures
from bptoolkit.runs.figures.look import compact_svg, darkened

KINDS = ("matrices", "forgetting", "first_task", "bars", "settling")


@pytest.fixture(scope="module")
def drawn(make):
    """Every figure of two scenarios, wide; drawn once."""
    return {
        f"{k}-{s}": figure(k, make(), s) for s in ("class", "domain") for k in KINDS if (k, s) != ("settling", "domain")
    }


@pytest.fixture(scope="module")
def narrow(make):
    return {f"{kind}-class": figure(kind, make(), "class", narrow=True) for kind in KINDS}


def panels(figure):
    return {axis.get_title(): axis for axis in figure.axes if axis.get_title()}


def test_each_scenario_has_one_set_wide_and_narrow(make):
    """Settling is drawn for nets that settle, and for no others."""
    small = make(tasks=2, seeds=2).sel(strategy=["naive"])
    drawn = figures(small.sel(net=["recurrent"]))
    assert list(drawn) == [f"{kind}-{scenario}" for scenario in ("class", "domain") for kind in KINDS]
    assert all(both.narrow.get_figwidth() < 4.5 for both in drawn.values())
    static = figures(make(tasks=2, seeds=2, scenarios=["class"]).sel(net=["static"], strategy=["naive"]))
    assert list(static) == [f"{kind}-class" for kind in KINDS[:-1]]


def test_a_phone_gets_the_same_panels_and_lines(drawn, narrow):
    for name, shown in narrow.items():
        assert shown.get_figwidth() < 4.5, name
        assert sorted(panels(shown)) == sorted(panels(drawn[name])), name
        assert [len(axis.lines) for axis in shown.axes] == [len(axis.lines) for axis in drawn[name].axes], name


def test_nothing_reaches_over_the_edge_of_its_figure(drawn, narrow):
    for name, shown in [*drawn.items(), *narrow.items()]:
        box = shown.get_tightbbox()
        assert min(box.x0, box.y0) > -0.06, name
        assert box.x1 < shown.get_figwidth() + 0.06, name
        assert box.y1 < shown.get_figheight() + 0.06, name


def test_a_heat_map_is_the_mean_matrix_with_the_untrained_row(drawn, results):
    shown = panels(drawn["matrices-class"])
    axis = shown["recurrent · ewc"]
    mean = 100 * results["accuracy"].sel(net="recurrent", strategy="ewc", scenario="class").mean("seed").values
    np.testing.assert_allclose(axis.images[0].get_array(), mean, rtol=1e-6)
    assert [text.get_text() for text in axis.texts] == [f"{value:.0f}" for value in mean.ravel()]
    assert [label.get_text() for label in shown["recurrent · naive"].get_yticklabels()] == ["none", *"12345"]


def test_what_was_not_run_says_so_in_its_panel(drawn):
    assert [text.get_text() for text in panels(drawn["matrices-domain"])["recurrent · joint"].texts] == [
        "no seed finished"
    ]
    assert len(panels(drawn["matrices-class"])["recurrent · joint"].texts) == 30


def luminance(colour):
    """Relative luminance of WCAG 2.2."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_every_number_in_a_heat_map_can_be_read(make):
    """Contrast of number and cell at least 4.4 from 0 to 100 %; √21 = 4.58 is the most that holds on every grey."""
    results = make(tasks=10, scenarios=["class"])
    levels = np.resize(np.linspace(0, 1, 101), results["accuracy"].shape).astype(np.float32)
    shown = figure("matrices", results.assign(accuracy=(results["accuracy"].dims, levels)), "class")
    axis = panels(shown)["static · naive"]
    image = axis.images[0]
    cells = image.cmap(image.norm(image.get_array())).reshape(-1, 4)[:, :3]
    for cell, text in zip(cells, axis.texts, strict=True):
        dark, light = sorted([luminance(cell), luminance(text.get_color())])
        assert (light + 0.05) / (dark + 0.05) > 4.4


def test_many_tasks_are_not_annotated_but_labelled(make):
    axis = panels(figure("matrices", make(tasks=20, seeds=2, scenarios=["class"]), "class"))["recurrent · naive"]
    assert not axis.texts
    assert [label.get_text() for label in axis.get_xticklabels()] == ["5", "10", "15", "20"]


def test_a_line_is_the_mean_on_the_first_task_and_its_band_the_interval(drawn, results):
    axis = panels(drawn["first_task-class"])["static"]
    R = 100 * results["accuracy"].sel(net="static", strategy="ewc", scenario="class", on=1).values[:, 1:]
    mean, half = np.array([interval(values) for values in R.T]).T
    np.testing.assert_allclose(axis.lines[1].get_ydata(), mean, rtol=1e-5)
    assert axis.lines[1].get_label() == "ewc"
    low, high = mean - half, mean + half
    band = axis.collections[1].get_paths()[0].vertices[:, 1]
    assert [band.min(), band.max()] == pytest.approx([low.min(), high.max()], rel=1e-5)


def test_every_task_has_a_line_with_its_band_and_is_thin_before_its_turn(drawn, results):
    axis = panels(drawn["forgetting-class"])["recurrent · ewc"]
    accuracy = results["accuracy"].sel(net="recurrent", strategy="ewc", scenario="class")
    R = 100 * accuracy.transpose("on", "after", "seed").values
    for i, task in enumerate(range(1, 6)):
        before, then = axis.lines[2 * i : 2 * i + 2]
        mean, half = np.array([interval(values) for values in R[i, task:]]).T
        assert (then.get_label(), before.get_linewidth() < then.get_linewidth()) == (f"task {task}", True)
        assert [*before.get_xdata()] == [*range(task + 1)]
        assert [*then.get_xdata()] == [*range(task, 6)]
        np.testing.assert_allclose(then.get_ydata(), mean, rtol=1e-5)
        np.testing.assert_allclose(before.get_ydata(), R[i, : task + 1].mean(-1), rtol=1e-5)
        band = axis.collections[i].get_paths()[0].vertices[:, 1]
        assert [band.min(), band.max()] == pytest.approx([(mean - half).min(), (mean + half).max()], rel=1e-5)


def test_settling_is_drawn_for_nets_that_settle(drawn, results):
    """Steps as they are, shares in per cent: 2 % of forward settlings under ewc, by construction."""
    axes = drawn["settling-class"].axes
    assert [(axis.get_title(), axis.get_ylabel()) for axis in axes] == [
        (way, what) for what in ("steps", "unconverged (%)") for way in ("forward", "backward")
    ]
    steps = results["settling_steps"].sel(net="recurrent", strategy="naive", scenario="class").mean("seed").values
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), steps, rtol=1e-6)
    np.testing.assert_allclose(axes[2].lines[1].get_ydata(), 2.0)


def test_lines_differ_by_colour_and_by_marker(drawn):
    lines = panels(drawn["first_task-class"])["static"].lines[:4]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 4


@pytest.mark.parametrize("kind", ["first_task", "bars"])
def test_chance_is_drawn_where_it_is_known(results, kind):
    results = results.sel(net=["static"], strategy=["naive"])
    labelled = lambda: figure(kind, results, "domain").axes[0].lines
    lines = [line for line in labelled() if line.get_label() == "chance"]
    assert [line.get_ydata()[0] for line in lines] == [50]
    del results.attrs["chance"]
    assert "chance" not in {line.get_label() for line in labelled()}


def test_bars_and_their_whiskers_are_those_of_the_summary(drawn, results):
    rows = [row for row in summarise(results)["rows"] if row["scenario"] == "domain"]
    for axis, metric in zip(drawn["bars-domain"].axes, ("average_accuracy", "forgetting"), strict=True):
        heights = [patch.get_height() for patch in axis.patches]
        assert heights == pytest.approx([100 * row[metric]["mean"] for row in rows])
        ends = [end for lines in axis.collections for end in lines.get_segments()]
        spans = [end[1, 1] - end[0, 1] for end in ends]
        assert spans == pytest.approx([200 * row[metric]["half_width"] for row in rows])


def test_an_undefined_measure_gives_its_reason_in_place_of_bars(make):
    axis = figure("bars", make(tasks=1), "class").axes[1]
    assert not axis.patches
    assert "one task" in axis.texts[0].get_text()


def test_a_seed_that_was_not_trained_to_the_end_is_not_drawn(results):
    cut = results.assign(accuracy=results["accuracy"].where((results["seed"] == 10) | (results["after"] < 4)))
    image = panels(figure("matrices", cut, "class"))["static · naive"].images[0]
    alone = 100 * results["accuracy"].sel(net="static", strategy="naive", scenario="class", seed=10).values
    np.testing.assert_allclose(image.get_array(), alone, rtol=1e-6)


def test_on_a_dark_page_every_colour_can_be_seen_and_cells_stay(drawn, narrow):
    """Contrast with the page at least 3 (WCAG 2.2, graphics) for every line and letter; on cells the colours stay."""
    light = compact_svg(drawn["forgetting-class"])
    paper = luminance("#1e2329")
    for colour in set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", darkened(light))) - {"#1e2329"}:
        assert (luminance(colour) + 0.05) / (paper + 0.05) > 3, colour
    assert "#ffffff" in light
    assert "#ffffff" not in darkened(light)
    cells = compact_svg(narrow["matrices-class"])
    for kept in ("#fefefe", "#010101"):
        assert cells.count(kept) == darkened(cells).count(kept) > 0
    assert darkened(cells).count("data:image/png") == cells.count("data:image/png") > 8


def test_what_a_page_holds_is_small_and_whole(narrow):
    """Text as text: the words can be found; a tenth of a megabyte is plenty."""
    for name, shown in narrow.items():
        drawing = compact_svg(shown)
        assert ElementTree.fromstring(drawing).tag.endswith("svg"), name
        assert len(drawing) < 100_000, name
    assert ">static · naive<" in compact_svg(narrow["matrices-class"])


@pytest.mark.parametrize("kind", [{"seeds": 1}, {"tasks": 1, "seeds": 1}])
def test_files_are_whole_images_and_the_same_each_time(make, tmp_path, kind):
    results = make(scenarios=["class"], **kind).sel(net=["static"], strategy=["naive", "ewc"])
    first = {name: path.read_bytes() for name, path in save_figures(results, tmp_path).items()}
    assert {name: path.read_bytes() for name, path in save_figures(results, tmp_path).items()} == first
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in first.values())
    images = sorted(tmp_path.glob("figures/*.png"))
    assert [path.stem for path in images] == sorted(first)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in images)
    assert not list(tmp_path.glob("figures/.*"))


def test_the_settings_of_matplotlib_stay(results):
    before = dict(matplotlib.rcParams)
    figure("bars", results, "class")
    assert dict(matplotlib.rcParams) == before
    assert any(before[name] != value for name, value in STYLE.items())
