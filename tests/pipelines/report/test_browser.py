"""The page in a browser, by keyboard alone, on a large screen and a telephone, in light and dark."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from pipelines.report.command import report
from pipelines.report_options import ReportConfig
from tests.browser import Browser, chromium
from tests.reports import HOSTILE, write_data, write_evaluation

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium to open the page")

SHOWN = "[...document.querySelectorAll('#category-table tbody tr')].filter(r => !r.hidden)"
PICTURES = "[...document.querySelectorAll('.picture')].filter(p => p.checkVisibility())"
CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  const bad = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.checkVisibility() || node.matches('script, .skip, option')) continue;
    const style = getComputedStyle(node), text = parse(node instanceof SVGElement ? style.fill : style.color);
    const [high, low] = [light(text), light(ground(node))].sort((a, b) => b - a);
    const ratio = (high + .05) / (low + .05);
    const where = `${node.tagName}.${node.getAttribute('class')}: ${node.textContent.trim().slice(0, 40)}`;
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${where}`);
  }
  return [...new Set(bad)].slice(0, 10);
})()
"""

CLIPPED = """
[...document.querySelectorAll('.chart text:not([transform])')].filter((text) => {
  const box = text.getBBox(), {width} = text.ownerSVGElement.viewBox.baseVal;
  return box.x < 0 || box.x + box.width > width;
}).map((text) => text.textContent)
"""


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("browser") / "report.html"
    report(ReportConfig((made.first, made.second), out, gallery=40, bootstrap=20), lambda _: None)
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read(browser: Browser, page, width, dark):
    browser.open(page, width, dark)
    assert browser.value("document.scrollingElement.scrollWidth <= innerWidth")
    assert browser.value("getComputedStyle(document.body).colorScheme") in (("dark",) if dark else ("light",))
    assert browser.value(CONTRAST) == []
    assert browser.value(CLIPPED) == []
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]


@pytest.mark.parametrize("width", [1280, 390])
def test_sorting_and_filtering_by_keyboard(browser: Browser, page, width):
    browser.open(page, width, dark=False)
    browser.press("Tab")
    assert browser.value("document.activeElement.matches('.skip')")
    browser.press("Enter")
    browser.tab_to("#category-filter")
    browser.type("OTT")
    assert browser.value(f"{SHOWN}.map(r => r.dataset.name)") == ["bottle"]
    assert browser.value("document.querySelector('#category-count').textContent") == "1 of 3 categories"
    for _ in range(3):
        browser.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Backspace", windowsVirtualKeyCode=8)
    assert browser.value(f"{SHOWN}.length") == 3
    browser.tab_to("#category-table th:nth-child(4) button")  # AP by mask score
    column = f"{SHOWN}.map(r => Number(r.cells[3].dataset.value))"
    sort = "document.querySelector('#category-table thead tr:last-child th:nth-child(4)').getAttribute('aria-sort')"
    browser.press("Enter")
    values = browser.value(column)
    assert (values, browser.value(sort)) == (sorted(values, reverse=True), "descending")
    browser.press(" ")
    assert (browser.value(column), browser.value(sort)) == (sorted(values), "ascending")
    assert browser.value("document.querySelectorAll('[aria-sort=ascending], [aria-sort=descending]').length") == 1
    assert browser.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_gallery_by_keyboard(browser: Browser, page, width):
    browser.open(page, width, dark=True)
    everything = browser.value("document.querySelectorAll('.picture').length")
    assert browser.value(f"{PICTURES}.length") == (36 if width > 600 else 18)  # the first of each kind
    browser.tab_to("input[name=kind]")
    browser.press("ArrowRight", 2)
    assert browser.value(f"new Set({PICTURES}.map(p => p.dataset.kind)).size") == 1
    assert browser.value(f"{PICTURES}[0].dataset.kind") == "misled"
    browser.tab_to("#gallery-category")
    browser.type("chair")
    assert browser.value(f"{PICTURES}.every(p => p.dataset.label === 'chair')")
    number = browser.value(f"{PICTURES}.length")
    assert browser.value("document.querySelector('#gallery-count').textContent") == f"{number} of {everything} pictures"
    browser.tab_to("[data-show=show-truth]")
    browser.press(" ")
    assert browser.value(f"getComputedStyle({PICTURES}[0].querySelector('.found')).visibility") == "visible"
    widths = f"{PICTURES}.flatMap(p => [...p.querySelectorAll('use')].map(u => u.getBBox().width))"
    assert min(browser.value(widths)) > 0
    assert browser.value("getComputedStyle(document.querySelector('.outline')).vectorEffect") == "non-scaling-stroke"
    hidden = "[...document.querySelectorAll('.truth')].every(p => getComputedStyle(p).visibility === 'hidden')"
    assert browser.value(hidden)

    browser.tab_to(".enlarge")
    browser.press("Enter")
    assert browser.value("document.querySelector('#viewer').open")
    assert browser.value("document.querySelector('#viewer-place').textContent") == f"1 of {number}"
    first = browser.value("document.querySelector('#viewer-body svg').getAttribute('aria-label')")
    browser.press("ArrowRight", 2)
    browser.press("ArrowLeft")
    assert browser.value("document.querySelector('#viewer-place').textContent") == f"2 of {number}"
    assert browser.value("document.querySelector('#viewer-body svg').getAttribute('aria-label')") != first
    assert browser.value("document.querySelector('#viewer').getBoundingClientRect().right <= innerWidth")
    browser.press("Escape")
    browser.wait("!document.querySelector('#viewer').open")
    browser.wait(f"{PICTURES}[1].contains(document.activeElement)")
    assert browser.complaints == []


def test_more_pictures_and_other_colours_by_keyboard(browser: Browser, page):
    browser.open(page, 1280, dark=False)
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    browser.tab_to("#theme")
    browser.press("Enter")
    assert browser.value("document.querySelector('#theme').getAttribute('aria-pressed')") == "true"
    assert browser.value("getComputedStyle(document.body).backgroundColor") != ground
    browser.tab_to(".more")
    kind = browser.value("document.activeElement.closest('.kind').dataset.kind")
    browser.press("Enter")
    of_kind = f".kind[data-kind={kind}] .picture"
    assert browser.value(f"[...document.querySelectorAll('{of_kind}')].every(p => !p.hidden)")
    assert browser.value(f"document.activeElement === document.querySelectorAll('{of_kind} .enlarge')[12]")
    assert browser.complaints == []
    browser.value("localStorage.clear()")


def test_names_from_data_stay_text(browser: Browser, tmp_path, make_scene):
    scenes = [make_scene(i, np.random.default_rng(i), 5, 9, 3) for i in range(1, 5)]
    write_evaluation(tmp_path / "run", write_data(tmp_path / "shards", scenes, HOSTILE), scenes)
    report(ReportConfig((tmp_path / "run",), tmp_path / "report.html"), lambda _: None)
    browser.open(tmp_path / "report.html", 1280, dark=False)
    assert browser.value("document.title") == "scenes: run"
    assert browser.value("document.querySelectorAll('script').length") == 1
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value(f"{SHOWN}.map(r => r.dataset.name)") == [name for _, name in HOSTILE]
    browser.tab_to(".enlarge")
    browser.press("Enter")
    assert browser.value("document.querySelector('#viewer-title').textContent").endswith(HOSTILE[0][1])
    assert browser.complaints == []


def test_everything_is_there_without_the_script(browser: Browser, page):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page, 1280, dark=False)
        assert browser.value("document.querySelectorAll('.picture').length") == browser.value(f"{PICTURES}.length")
        assert not browser.value("[...document.querySelectorAll('.script')].some(e => e.checkVisibility())")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
