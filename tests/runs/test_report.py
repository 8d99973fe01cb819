"""The report: one page that needs nothing else, hides nothing, and escapes what it is given."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from bptoolkit.runs import RunError, finish, load_summary, open_run, save_results, write_report
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make):
    """A finished run of two scenarios, with its report."""
    folder = folder_of(tmp_path_factory.mktemp("runs") / "run", make(tasks=2, seeds=2))
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
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.elements)
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert all(not value.startswith("http") for _, attrs in page.elements for value in attrs.values() if value)
    assert not re.search(r"url\(|@import", "".join(page.words))  # the style sheet is among the words


def test_a_report_is_the_same_each_time(tmp_path, small):
    folder = folder_of(tmp_path / "run", small)
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


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
    assert len(images) == 2 * 3
    assert len({image["alt"] for image in images}) == 6
    assert re.search(r"first task; after the last task: static naive \d+ %", images[1]["alt"])
    assert re.search(r"average accuracy: static naive \d+ %.*forgetting: static naive \d+ %", images[2]["alt"])
    assert len(page.all("figcaption")) == 6


def test_tables_and_figures_scroll_inside_their_own_box(page):
    boxes = [attributes for attributes in page.all("div") if "scroll" in attributes["class"].split()]
    assert len(boxes) == len(page.all("table")) + len(page.all("img"))
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_what_it_is_given_is_escaped(tmp_path, small):
    results = small.assign_attrs(question="Is a < b & <script>alert(1)</script>?")
    results = results.assign_coords(strategy=["<b>naive"], net=['"net"'])
    page = read(folder_of(tmp_path / "run", results, config=CONFIG | {"config": {"<i>": "</table>"}}))
    assert {"script", "b", "i"}.isdisjoint(tag for tag, _ in page.elements)
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


def test_a_report_needs_no_pyplot(tmp_path, small):
    folder = folder_of(tmp_path / "run", small)
    script = "import sys; from bptoolkit.runs import write_report; write_report(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert "matplotlib.figure" in done.stdout.split()
    assert "matplotlib.pyplot" not in done.stdout.split()
