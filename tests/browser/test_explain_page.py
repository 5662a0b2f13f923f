"""The page of `nsa-onnx explain` in a browser: it renders, loads nothing, works by keyboard and on small screens."""

from __future__ import annotations

from itertools import pairwise

import explain_models
import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from nsa_onnx.explain import explain


def wrong():
    made = explain_models.many(2)
    made.graph.node[1].attribute[1].i = 24
    made.graph.initializer[0].int64_data[:] = [110, 100]
    return made


MODELS = {
    "many nodes": lambda: explain_models.many(9),
    "layers": lambda: explain_models.layered(5),
    "to be fused": explain_models.decomposed,
    "not to be fused": explain_models.almost,
    "many segments": lambda: explain_models.ragged(np.random.default_rng(0).integers(20, 900, 60)),
    "too many segments": lambda: explain_models.ragged(np.random.default_rng(0).integers(1, 60, 20_000)),
    "one long segment": lambda: explain_models.ragged([2**21 + 7], 128, 16),
    "decode": explain_models.decode,
    "findings": wrong,
    "hostile": explain_models.hostile,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name.replace(' ', '-')}.html" for name in MODELS}
    for name, path in paths.items():
        path.write_text(explain(MODELS[name]()), "utf-8")
    return paths


def open_all(browser):
    browser.script("document.querySelectorAll('details').forEach(d => d.open = true)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 768, 1100])
@pytest.mark.parametrize("name", MODELS)
def test_it_renders_without_errors_requests_or_sideways_scrolling(browser, pages, name, width, scheme):
    browser.show(pages[name], width, scheme=scheme)
    assert browser.driver.find_element(By.TAG_NAME, "h1").is_displayed()
    open_all(browser)
    assert browser.script("return document.documentElement.scrollWidth") <= width
    # Nothing sticks out or is cut off either, but for what is only there for screen readers.
    outside = """
      return [...document.querySelectorAll('body *')].filter(e => {
        const box = e.getBoundingClientRect();
        return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5) && !e.closest('.skip, thead, .defs');
      }).map(e => e.outerHTML.slice(0, 200));
    """
    assert browser.script(outside) == []
    assert browser.console() == []
    assert [url for url in browser.requests() if url != pages[name].as_uri()] in ([], ["data:,"])


def test_the_style_applies_and_follows_the_colour_scheme(browser, pages):
    grounds = []
    for scheme in ("light", "dark"):
        browser.show(pages["decode"], scheme=scheme)
        grounds.append(browser.script("return getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(246, 247, 249)", "rgb(18, 22, 28)"]


_CONTRAST = """
  const lum = c => { const p = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2]; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255,255,255)'; };
  const poor = new Set();
  for (const e of document.querySelectorAll('body *:not(svg *)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [lum(getComputedStyle(e).color), lum(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.add(e.className + ' ' + e.tagName + ' ' + e.textContent.slice(0, 40));
  }
  return [...poor];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["decode", "findings", "layers", "to be fused", "not to be fused"])
def test_text_stands_out_from_its_ground(browser, pages, name, scheme):
    browser.show(pages[name], scheme=scheme)
    open_all(browser)
    assert browser.script(_CONTRAST) == []


def press(browser, *keys):
    ActionChains(browser.driver).send_keys(*keys).perform()


@pytest.mark.parametrize("name", ["findings", "decode", "many nodes", "layers", "not to be fused"])
def test_every_control_is_reached_by_tab_and_shows_its_focus(browser, pages, name):
    browser.show(pages[name])
    controls = "return [...document.querySelectorAll('a[href], summary')].filter(e => e.checkVisibility())"
    wanted = browser.script(controls)
    assert wanted
    for control in wanted:
        press(browser, Keys.TAB)
        focused = browser.driver.switch_to.active_element
        assert focused == control, "the order of focus is the order of the page"
        outline = "const s = getComputedStyle(arguments[0]); return [s.outlineStyle, parseFloat(s.outlineWidth) >= 2]"
        assert browser.script(outline, focused) == ["solid", True]


def test_details_open_and_close_with_enter_and_space(browser, pages):
    browser.show(pages["findings"])
    for summary in browser.driver.find_elements(By.CSS_SELECTOR, ".more > summary"):
        if not summary.is_displayed():
            continue
        browser.script("arguments[0].focus()", summary)
        state = "return arguments[0].parentElement.open"
        before = browser.script(state, summary)
        press(browser, Keys.ENTER)
        assert browser.script(state, summary) is not before
        press(browser, Keys.SPACE)
        assert browser.script(state, summary) is before


def test_the_skip_link_leads_past_the_header(browser, pages):
    browser.show(pages["decode"])
    press(browser, Keys.TAB)
    assert browser.driver.switch_to.active_element.is_displayed()
    press(browser, Keys.ENTER)
    assert browser.driver.switch_to.active_element.get_attribute("id") == "main"


def test_a_link_opens_the_node_that_it_leads_to(browser, pages):
    browser.show(pages["many nodes"])
    target = browser.driver.find_element(By.ID, "node-8")
    fold = browser.driver.find_element(By.CSS_SELECTOR, ".alike > summary")
    assert not target.is_displayed(), "nodes like an earlier one are folded"
    assert fold.text.startswith("8 more like this")
    link = browser.driver.find_element(By.CSS_SELECTOR, ".more a[href='#node-8']")
    assert not link.is_displayed(), "the table has one row for all of them"
    browser.script("arguments[0].focus()", browser.driver.find_element(By.CSS_SELECTOR, "table + .more > summary"))
    press(browser, Keys.ENTER)
    assert link.is_displayed()
    browser.script("arguments[0].focus()", link)
    press(browser, Keys.ENTER)
    assert target.is_displayed()


def test_a_layer_s_nodes_are_shown_when_its_fold_is_opened(browser, pages):
    browser.show(pages["layers"])
    headings = browser.driver.find_elements(By.CSS_SELECTOR, ".layer > h3")
    names = [f"decoder.layers.{index}" for index in range(5)]
    assert [heading.text for heading in headings if heading.is_displayed()] == names[:1]
    browser.script("arguments[0].focus()", browser.driver.find_element(By.CSS_SELECTOR, ".alike > summary"))
    press(browser, Keys.ENTER)
    assert [heading.text for heading in headings if heading.is_displayed()] == names
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, ".node[open]")) == 1


def test_headings_go_down_one_level_at_a_time_and_pictures_have_names(browser, pages):
    for path in pages.values():
        browser.show(path)
        levels = browser.script("return [...document.querySelectorAll('h1,h2,h3,h4,h5')].map(h => +h.tagName[1])")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        unnamed = "svg:not([aria-hidden]):not([role='img'][aria-label])"
        assert browser.driver.find_elements(By.CSS_SELECTOR, unnamed) == []
        assert browser.script("return [...document.querySelectorAll('[id]')].length") == browser.script(
            "return new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
        )


@pytest.mark.parametrize("width", [360, 1100])
def test_pixels_are_proportional_to_tokens(browser, tmp_path, width):
    lengths = [200, 72, 40, 20]
    path = tmp_path / "scale.html"
    path.write_text(explain(explain_models.ragged(lengths)), "utf-8")
    browser.show(path, width)
    for index, (length, windows) in enumerate(zip(lengths, (11, 3, 1, 0), strict=True)):
        drawing = browser.driver.find_element(By.CSS_SELECTOR, f"svg[aria-label^='segment {index}:']")
        boxes = """
          return [...arguments[0].querySelectorAll('rect')].map(
            r => [r.classList[0], r.getBBox().x, r.getBBox().width]);
        """
        unit = browser.script("return arguments[0].getBoundingClientRect().width", drawing) / max(lengths)
        found = browser.script(boxes, drawing)
        assert max(x + w for _, x, w in found) == pytest.approx(length * unit, abs=0.5)
        assert [w for kind, _, w in found if kind.startswith("window")] == pytest.approx([32 * unit] * windows, abs=0.5)


def test_nothing_in_a_model_runs(browser, pages):
    browser.show(pages["hostile"])
    open_all(browser)
    for element in browser.driver.find_elements(By.CSS_SELECTOR, "summary, a, b, code")[:15]:
        if element.is_displayed():
            ActionChains(browser.driver).move_to_element(element).perform()
    assert browser.script("return typeof window.pwned") == "undefined"
    assert (
        browser.driver.find_elements(By.CSS_SELECTOR, "img, script, iframe, object, svg[onload], [onmouseover]") == []
    )
    assert "<script>window.pwned=1</script>" in browser.driver.find_element(By.TAG_NAME, "body").text
    assert browser.console() == []


def test_a_page_that_was_tampered_with_cannot_load_or_run(browser, pages, tmp_path):
    """The policy is the second wall: it holds even where escaping would have failed."""
    added = "<script>window.pwned=1</script><img src='https://example.invalid/x'><b style='color:red'>"
    path = tmp_path / "tampered.html"
    path.write_text(pages["decode"].read_text("utf-8").replace("<main", f"{added}<main", 1), "utf-8")
    browser.show(path)
    assert browser.script("return typeof window.pwned") == "undefined"
    assert not [url for url in browser.requests() if "example.invalid" in url]
    stopped = [line for line in browser.console() if "Content Security Policy" in line]
    assert [any(word in line for line in stopped) for word in ("script", "example.invalid", "style")] == [True] * 3
