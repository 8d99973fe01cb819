"""The report: one page that needs nothing else, hides nothing, and escapes what it is given."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import xarray

from bptoolkit.runs import RunError, finish, load_summary, markdown_table, open_run, save_results, write_report
from bptoolkit.runs.figures import scenario_of
from bptoolkit.runs.report import alternative, elapsed, facts
from bptoolkit.runs.summary import summarise
from bptoolkit.runs.tables import grids

CONFIG = {
    "experiment": "experiments.split_digits",
    "config": {"optimizer": {"rate": 0.001}, "hidden": [100]},
    "seeds": [10, 11],
}
EMPTY = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Every element with its attributes, the text, and the balance of the tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def folder_of(path, results, state="finished", config=CONFIG):
    folder = open_run(path, config).folder
    save_results(folder, results)
    if state != "running":
        finish(folder, state)
    return folder


def test_the_time_is_that_of_all_starts():
    """A start that was killed has left no end: the time is then a bound, and a run that goes on has none."""
    at = lambda minute: f"2026-11-26T00:{minute:02}:00+00:00"
    last = {"started": at(30), "ended": at(31)}
    assert elapsed(last) == (60, True)
    assert elapsed(last | {"earlier": [{"started": at(0), "ended": at(10)}]}) == (660, True)
    killed = last | {"earlier": [{"started": at(0), "ended": at(10)}, {"started": at(12), "ended": None}]}
    assert elapsed(killed) == (660, False)
    told = facts({"tasks": 5, "seeds": 2}, killed)
    assert "at least 660 s" in told
    assert elapsed(last | {"ended": None}) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make):
    """A finished run of two scenarios, with its report."""
    results = make(tasks=2, seeds=2).sel(strategy=["naive", "ewc"])
    folder = folder_of(tmp_path_factory.mktemp("runs") / "run", results)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def small(make):
    """The results of one static net, one strategy, one scenario, one seed and one task."""
    return make(scenarios=["class"], seeds=1, tasks=1).sel(net=["static"], strategy=["naive"])


def read(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_report_stands_alone(page):
    assert {"link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.elements)
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert all(not value.startswith("http") for _, attrs in page.elements for value in attrs.values() if value)
    assert not re.search(r"url\(|@import", "".join(page.words))  # the style sheet is among the words


def test_the_one_script_is_the_one_that_the_policy_allows(folder, page):
    """The hash in the policy is that of the text between the tags, worked out here."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == len(page.all("script")) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy


def test_a_report_is_the_same_each_time(tmp_path, small):
    folder = folder_of(tmp_path / "run", small)
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_a_report_makes_a_damaged_summary_anew_as_its_refusal_says(tmp_path, small):
    folder = folder_of(tmp_path / "run", small)
    (folder / "summary.json").write_text('{"tasks"')
    with pytest.raises(RunError, match=r"cannot be read .*Make it anew of the results: scripts/report\.py "):
        load_summary(folder)
    write_report(folder)
    assert load_summary(folder)["tasks"] == 1


def test_a_report_holds_every_number_every_setting_and_the_way_to_repeat_it(page, folder):
    words = {word.strip() for word in page.words}
    for grid in grids(load_summary(folder)):
        assert {grid.text(cell) for row in grid.cells for cell in row} <= words
    environment = json.loads((folder / "environment.json").read_text())
    assert {
        "config.optimizer.rate",
        "0.001",
        "config.hidden",
        "100",
        environment["command"],
        environment["python"],
    } <= words
    assert {
        "split_digits",
        "Does settling change how fast a net forgets?",
        "numpy",
        environment["packages"]["numpy"],
    } <= words
    assert {"summary.json", "figures", "report.html"} <= {path.name for path in folder.iterdir()}


def test_every_figure_says_in_words_what_it_shows(page):
    images = page.all("img")
    assert len(images) == 2 * 5 * 4
    said = [image["alt"] for image in images if image["class"] == "wide light"]
    assert len(set(said)) == 2 * 5
    assert re.search(r"on every task over training, for static and recurrent with naive, ewc", said[1])
    assert re.search(r"first task; after the last task: static naive \d+ %", said[2])
    assert re.search(r"average accuracy: static naive \d+ %.*forgetting: static naive \d+ %", said[3])
    assert re.search(r"settling steps .*: recurrent naive 0 %, recurrent ewc 2 %", said[-1])
    assert len(page.all("figcaption")) == 2 * 5


def test_what_a_figure_says_leaves_out_seeds_that_diverged(small):
    """Half of the first task is left to one seed, and nothing to one of NaN, which is no measurement."""
    two = xarray.concat([small, small.assign_coords(seed=[11])], "seed", data_vars="minimal")
    two = two.assign(accuracy=xarray.where(two["seed"] == 10, 0.5, 0.0) * xarray.ones_like(two["accuracy"]))
    two = two.assign(finite=xarray.ones_like(two["loss"].isel(bin=0)).where(two["seed"] == 10, 0.0))
    part = scenario_of(summarise(two), "class")
    assert alternative("first_task", two, part).endswith("after the last task: static naive 50 %.")


def test_every_figure_is_there_for_wide_and_narrow_light_and_dark(page):
    looks = [image["class"] for image in page.all("img")]
    assert {looks.count(f"{layout} {theme}") for layout in ("wide", "narrow") for theme in ("light", "dark")} == {10}
    assert len({image["src"] for image in page.all("img")}) == 40


def test_the_contents_lead_to_every_part(page):
    places = {element["id"] for element in page.all("h2")}
    assert [link["href"] for link in page.all("a")] == [f"#{element['id']}" for element in page.all("h2")]
    assert places == {
        *("results", "accuracy-1", "accuracy-2", "within-tasks", "settling", "plasticity", "diagnosis", "cost"),
        *("hyper-parameters", "environment", "repeat"),
    }


def test_cells_carry_the_numbers_they_are_sorted_by(page, folder):
    """The mean itself where it is known, nothing where it is not."""
    rows = load_summary(folder)["rows"]
    carried = [cell["data-value"] for cell in page.all("td") if "data-value" in cell]
    assert float(carried[0]) == 100 * rows[0]["average_accuracy"]["mean"]
    assert all(value == "" or math.isfinite(float(value)) for value in carried)


def test_tables_for_papers_are_written_beside_it(folder):
    markdown, latex = ((folder / name).read_text(encoding="utf-8") for name in ("tables.md", "tables.tex"))
    assert markdown == markdown_table(load_summary(folder))
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 3


def test_tables_scroll_inside_their_own_box(page):
    boxes = [attributes for attributes in page.all("div") if "scroll" in attributes["class"].split()]
    assert len(boxes) == len(page.all("table"))
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_what_it_is_given_is_escaped(tmp_path, small):
    results = small.assign_attrs(question="Is a < b & <script>alert(1)</script>?")
    results = results.assign_coords(strategy=["<b>naive"], net=['"net"'])
    page = read(folder_of(tmp_path / "run", results, config=CONFIG | {"config": {"<i>": "</table>"}}))
    assert {"b", "i"}.isdisjoint(tag for tag, _ in page.elements)
    assert len(page.all("script")) == 1
    assert {"Is a < b & <script>alert(1)</script>?", "<b>naive", '"net"', "config.<i>", "</table>"} <= set(page.words)


def test_a_failed_settling_catches_the_eye(page):
    alarms = [cell for cell in page.all("td") if "alarm" in (cell.get("class") or "").split()]
    assert len(alarms) == 2  # recurrent × ewc in each scenario


@pytest.mark.parametrize("state", ["failed", "interrupted", "running"])
def test_a_run_that_has_not_finished_says_so(tmp_path, small, state):
    page = read(folder_of(tmp_path / "run", small, state))
    assert state in page.words
    assert {"class": "alarm"} in page.all("span")


def test_one_task_one_seed_and_one_net_make_a_report(tmp_path, small):
    page = read(folder_of(tmp_path / "run", small))
    assert "No net of this run settles." in page.words
    assert any("one task" in word for word in page.words)


def test_a_run_of_which_nothing_was_finished_makes_a_report(tmp_path, small):
    page = read(folder_of(tmp_path / "run", small.assign(accuracy=small["accuracy"] * float("nan")), "failed"))
    assert not page.all("img")
    assert any("Not run: static/naive/class" in word for word in page.words)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "results.nc"])
def test_without_one_of_its_files_there_is_no_report(tmp_path, small, name):
    folder = folder_of(tmp_path / "run", small)
    (folder / name).unlink()
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        write_report(folder)
    assert not (folder / "report.html").exists()


def changed(folder, **fields):
    path = folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


BAD = {
    "nothing there": (lambda folder: shutil.rmtree(folder), "is not there"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_text("")), "is a file"),
    "an empty folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        r"config\.json must be a JSON file",
    ),
    "half a record": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json must be a JSON file"),
    "no experiment": (lambda folder: (folder / "config.json").write_text("{}"), 'must name its "experiment"'),
    "no environment": (
        lambda folder: (folder / "environment.json").write_text("{}"),
        "must hold state, a word; got nothing",
    ),
    "no time": (lambda folder: changed(folder, started=5), "must hold started, a time with its zone; got 5"),
    "no zone": (lambda folder: changed(folder, ended="2026-01-01"), "must hold ended, a time with its zone, or null"),
    "no commit": (
        lambda folder: changed(folder, source="main"),
        "must hold source, {commit, dirty} or null; got 'main'",
    ),
    "cut results": (lambda folder: (folder / "results.nc").write_bytes(b"\x89HDF"), "must be a whole NetCDF file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, small, case):
    folder = folder_of(tmp_path / "run", small)
    spoil, sentence = BAD[case]
    spoil(folder)
    with pytest.raises(RunError, match=sentence) as error:
        write_report(folder)
    assert len(str(error.value).splitlines()) == 1
    assert not (folder / "report.html").exists()


DAMAGED = {
    "no untrained row": (lambda results: results.isel(after=slice(1, None)), "accuracy after 0 … T on 1 … T"),
    "shares above 1": (
        lambda results: results.assign(accuracy=100 * results["accuracy"]),
        "accuracies in 0 … 1, or NaN",
    ),
    "chance of others": (lambda results: results.assign_attrs(chance=[0.1, 0.2, 0.3]), "a chance for each scenario"),
    "a number as question": (lambda results: results.assign_attrs(question=5), "a question in words"),
    "no net": (lambda results: results.isel(net=[]), "at least one task, net"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_results_that_make_no_sense_are_one_sentence(tmp_path, small, case):
    change, required = DAMAGED[case]
    with pytest.raises(RunError, match=rf"results\.nc must hold .*{required}"):
        write_report(folder_of(tmp_path / "run", change(small)))


def test_a_report_needs_no_pyplot(tmp_path, small):
    folder = folder_of(tmp_path / "run", small)
    script = "import sys; from bptoolkit.runs import write_report; write_report(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert "matplotlib.figure" in done.stdout.split()
    assert "matplotlib.pyplot" not in done.stdout.split()
