"""The report in a real browser: on a phone and on a desk, light and dark, nothing broken, nothing cut off."""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from bptoolkit.runs import finish, open_run, save_results, write_comparison, write_report

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
CONFIG = {"experiment": "experiments.split_digits", "config": {"rate": 0.001, "hidden": [100]}, "seeds": 2, "key": 0}
LOOKS = [(width, scheme) for width in (390, 1400) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, make):
    """The addresses of a report and of a comparison, made without training."""
    folder = tmp_path_factory.mktemp("runs")
    results = make(tasks=3, seeds=2, scenarios=["class"]).sel(strategy=["naive", "ewc"])
    for name, key in (("a", 0), ("b", 1)):
        run = open_run(folder / name, CONFIG | {"config": {"rate": key}}).folder
        save_results(run, results)
        finish(run)
    both = write_comparison([folder / "a", folder / "b"], folder / "both")
    return {"report": write_report(folder / "a").as_uri(), "comparison": both.as_uri()}


@pytest.fixture(scope="module")
def browser():
    """Chromium; skipped with the reason where there is none, but not in CI, unless it says that there can be none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        reason = "There is no Chromium on this machine: apt-get install chromium."
        expected = os.environ.get("CI") and os.environ.get("BPTOOLKIT_BROWSER") != "none"
        (pytest.fail if expected else pytest.skip)(reason)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=found, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens an address; what the page has complained of is in `said`."""
    said, contexts = [], []

    def open_page(address, width=1400, scheme="light", **kind):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **kind)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        page.goto(address)
        return page

    yield open_page, said
    for context in contexts:
        context.close()


@pytest.mark.parametrize("kind", ["report", "comparison"])
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_page_is_whole_in_every_look(pages, opened, kind, width, scheme):
    """No complaint, every figure decoded, one of four shown of each, and nothing wider than the page."""
    open_page, said = opened
    page = open_page(pages[kind], width, scheme)
    images = page.evaluate("[...document.images].map(i => [i.className, i.complete && i.naturalWidth, i.offsetWidth])")
    shown = [(look, laid) for look, _, laid in images if laid]
    assert all(natural > 0 for _, natural, _ in images)
    assert len(images) == 4 * len(shown) == 4 * len(page.query_selector_all("figure"))
    assert {look for look, _ in shown} == {f"{'narrow' if width < 700 else 'wide'} {scheme}"}
    assert max(laid for _, laid in shown) <= width
    assert page.evaluate("document.documentElement.scrollWidth") == width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) > 3 * 128) == (scheme == "light")
    assert said == []


def test_on_paper_a_dark_page_is_light(pages, opened):
    open_page, said = opened
    page = open_page(pages["report"], 1400, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    shown = page.evaluate("[...document.images].filter(i => i.offsetWidth).map(i => i.className)")
    assert set(shown) == {"wide light"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert said == []


def test_a_page_that_is_not_whole_would_be_noticed(pages, opened, tmp_path):
    """The tests above, on a page that was spoiled: a foreign script is refused and heard, width is seen."""
    open_page, said = opened
    text = open_path(pages["report"]).read_text(encoding="utf-8")
    spoiled = "<script>document.title = 'changed'</script><div style='width: 3000px'>wide</div></main>"
    (tmp_path / "page.html").write_text(text.replace("</main>", spoiled), encoding="utf-8")
    page = open_page((tmp_path / "page.html").as_uri(), 390)
    assert any("Content Security Policy" in message for message in said)
    assert page.title() == "split_digits: report"
    assert page.evaluate("document.documentElement.scrollWidth") > 390


def open_path(address):
    return Path(url2pathname(urlsplit(address).path))


def column(page, number):
    """The texts of one column of the first table."""
    cells = page.locator(f"table.sortable >> nth=0 >> css=tbody tr > :nth-child({number + 1})")
    return cells.all_text_contents()


def test_a_table_sorts_by_its_header_up_down_and_back(pages, opened):
    open_page, said = opened
    page = open_page(pages["report"])
    before = column(page, 2)
    mean = lambda text: float(text.split()[0].replace("−", "-"))
    button = page.locator("table.sortable").first.locator("th button").nth(2)
    head = page.locator("table.sortable").first.locator("thead th").nth(2)
    for turn, expected in (("ascending", sorted(before, key=mean)), ("descending", sorted(before, key=mean)[::-1])):
        button.click()
        assert head.get_attribute("aria-sort") == turn
        assert column(page, 2) == expected
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert column(page, 2) == before
    page.locator("table.sortable").first.locator("th button").first.click()
    assert column(page, 0) == sorted(column(page, 0))
    assert said == []


def test_without_scripts_the_page_says_the_same(pages, opened):
    open_page, said = opened
    page = open_page(pages["report"], java_script_enabled=False)
    assert page.locator("table.sortable").first.locator("tbody tr").count() == 4
    assert page.locator("thead button").count() == 0
    assert said == []
