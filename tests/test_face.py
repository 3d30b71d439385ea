"""The pages as people see them, in headless Chromium: on a phone and a desk, light and dark, by eye, hand and ear."""

import pytest
from _browser import CHROMIUM, Tab, browser
from _reported import made_up, verdict

from tasks import page
from tasks.model_card import model_card
from tasks.report import report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

PHONE, DESK = (360, 800), (1280, 900)
SCHEMES = ("light", "dark")
LARGEST = 1_000_000  # bytes
SECONDS = 5.0  # until a page can be used: ample, where a measurement finds a tenth
CONTRAST = """(() => {
  const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const paper = element => {
    const box = element.closest('g.node');
    if (box) return rgba(getComputedStyle(box.querySelector('rect')).fill);
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const found = {};
  for (const element of document.querySelectorAll('body, body *')) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest('[aria-hidden]')) continue;
    const style = getComputedStyle(element), under = paper(element);
    const ink = over(rgba(element.namespaceURI.endsWith('svg') ? style.fill : style.color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    const name = element.tagName.toLowerCase() + '.' + (element.getAttribute('class') || '');
    found[name] = Math.min(found[name] ?? 99, (a + 0.05) / (b + 0.05));
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A full report, a verdict's page and a model card."""
    root = made_up(tmp_path_factory.mktemp("face"), tasks=40, slices=60, features=200, texts=30, steps=3000)
    out = root / "artifacts/report/index.html"
    report(str(root / "params.yaml"), root / "artifacts", root / "data", out, stale=set(), journal=root / "journal")
    judged = verdict("task_0", 60)
    judged_page, card = root / "verdict.html", root / "card.html"
    judged_page.write_text(page.page(judged, {}))
    record = {"params": {"method": "mpt_rec", "name": "task_0"}, "metrics": {}, "tags": {"stage": "prompt@task_0"}}
    card.write_text(model_card("recommend-task_0", record, judged, 4).html)
    return {"report": out, "verdict": judged_page, "card": card}


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Tab:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", ["report", "verdict", "card"])
def test_a_page_fits_its_window_and_every_word_can_be_read(tab, pages, name, size, scheme):
    tab.said.clear()
    tab.asked.clear()
    tab.look(pages[name], *size, scheme)
    assert tab.ask("document.documentElement.scrollWidth") <= size[0]
    wide = tab.ask("[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg') && "
                   "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))")  # fmt: skip
    assert wide == []
    contrast = tab.ask(CONTRAST)
    assert len(contrast) > 5
    assert {place: round(ratio, 2) for place, ratio in contrast.items() if ratio < 4.5} == {}
    dark = tab.ask("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert tab.said == []
    assert set(tab.asked) == {pages[name].resolve().as_uri()}


def test_the_fullest_report_is_small_and_soon_usable(tab, pages):
    assert pages["report"].stat().st_size <= LARGEST
    tab.look(pages["report"], *PHONE, "light")
    told = tab.ask("(e => [e.domContentLoadedEventEnd, e.loadEventEnd])(performance.getEntriesByType('navigation')[0])")
    assert 0 < told[0] <= told[1] < 1000 * SECONDS


@pytest.mark.parametrize("name", ["report", "verdict", "card"])
def test_a_reader_without_eyes_hears_it_all(tab, pages, name):
    tab.look(pages[name], *DESK, "light")
    assert tab.ask("document.documentElement.lang") == "en" and tab.ask("document.title")
    silent = "[...document.querySelectorAll('img, svg')].filter(e => !(e.getAttribute('alt') || e.ariaLabel)).length"
    assert tab.ask(silent) == 0
    levels = tab.ask("[...document.querySelectorAll('h1, h2, h3, h4')].map(e => Number(e.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert tab.ask("[...document.querySelectorAll('table')].filter(e => !e.querySelector('th')).length") == 0


def test_the_report_is_walked_by_its_links_and_opened_by_hand(tab, pages):
    tab.look(pages["report"], *PHONE, "light")
    broken = "[...document.querySelectorAll('nav a')].filter(e => !document.querySelector(e.hash)).length"
    assert tab.ask("document.querySelectorAll('nav a').length") == 10 and tab.ask(broken) == 0
    assert tab.ask("document.querySelector('.graph').tabIndex") == 0
    assert tab.ask("document.querySelector('.graph').scrollWidth > document.querySelector('.graph').clientWidth")
    height = "document.documentElement.scrollHeight"
    folded = tab.ask(height)
    tab.ask("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert tab.ask(height) > 1.5 * folded
    assert tab.ask("document.documentElement.scrollWidth") <= PHONE[0]
