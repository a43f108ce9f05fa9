"""The page in a real browser: Chromium, or Google Chrome, without a window and without a network."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from goodinit import Record, Report, lsuv_
from goodinit.measurement.propagation import Layer, Signal, measure

pytest.importorskip("playwright")
pytest.importorskip("axe_playwright_python")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
if CHROMIUM is None and "CI" not in os.environ:  # where it is missing in continuous integration, all tests here fail
    pytest.skip("no Chromium: on Debian, apt-get install chromium", allow_module_level=True)

QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SIZES = {"phone": {"width": 360, "height": 740}, "desktop": {"width": 1280, "height": 800}}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        args = [*QUIET, "--disable-component-update", "--disable-sync"]
        expect.set_options(timeout=30_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args, chromium_sandbox=False)
        yield browser
        browser.close()


def deep_net(depth=12, width=24):
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)))
    for block in blocks:
        nn.init.normal_(block[0].weight, std=0.3 / width**0.5)
    return nn.ModuleDict({"body": blocks, "head": nn.Linear(width, 4)})


def forward(model, x):
    return model["head"](model["body"](x))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Paths by name."""
    folder = tmp_path_factory.mktemp("pages")
    model, x = deep_net(), torch.randn(64, 24)
    before = measure(model, x, lambda output: output.square().mean(), forward=forward)
    report = lsuv_(model, x, forward=forward)
    after = measure(model, x, lambda output: output.square().mean(), forward=forward)
    broken = replace(report, records=(replace(report.records[0], status="no-signal", std_after=0.0), *report.records[1:]))
    return {
        "deep": report.save_html(folder / "deep.html", before=before, after=after, title="a deep net"),
        "broken": broken.save_html(folder / "broken.html"),
        "thousand": thousand().save_html(folder / "thousand.html", before=signal_of(thousand())),
        "empty": Signal(()).save_html(folder / "empty.html"),
        "one": Signal((LAYER,)).save_html(folder / "one.html"),
        "evil": Signal((LAYER, replace(LAYER, name=f"{EVIL}.weight", std=float("nan")))).save_html(folder / "evil.html"),
        "scheme": replace(report, records=tuple(map(drawn, report.records))).save_html(folder / "scheme.html"),
    }


LAYER = Layer("fc.weight", "linear", (4, 3), 0.0, 0.5, 0.25, weight_norm=2.0, histogram=(0, 1, 2, 1))
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;" + "long_name_" * 30


def drawn(record):
    return replace(record, status="drawn", std_before=None, std_after=None)


def thousand():
    names = [f"net.blocks.{i}.{part}.weight" for i in range(250) for part in ("query", "key", "value", "out")]
    records = [Record(n, "linear", (64, 64), "scaled", 1.0, 2.0 ** (-i / 20), 1.0, 2.0) for i, n in enumerate(names)]
    return Report((*records[:500], replace(records[500], status="no-signal", std_after=0.0), *records[501:]), 1, 1.0, 0.5)


def signal_of(report):
    return Signal(tuple(replace(LAYER, name=r.name, std=r.std_before, grad_std=1.0, dead=0.1) for r in report))


@pytest.fixture
def opened(browser, pages):
    """A function that opens a page, and at the end of the test asserts that nothing went wrong in any of them."""
    contexts, wrong = [], []

    def open_page(name, size="desktop", **options):
        context = browser.new_context(viewport=SIZES[size], **options)
        context.set_default_timeout(30_000)  # two cores may be busy with other tests
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    known = {path.as_uri() for path in pages.values()}
    assert [text for text in wrong if text not in known and not text.startswith("data:")] == []


def shown_names(page):
    return page.locator("#table tbody tr:not([hidden]) th").all_inner_texts()


def column(page, key):
    place = page.locator("#table thead th").evaluate_all(f"cells => cells.findIndex(cell => cell.dataset.key === {key!r})")
    return [text.strip() for text in page.locator(f"#table tbody tr:not([hidden]) > :nth-child({place + 1})").all_inner_texts()]


def point_at(page, layer, *, panel=0, count=13):
    """Move the mouse to a layer by its number from 0."""
    page.locator("svg.panel").nth(panel).scroll_into_view_if_needed()
    box = page.locator("svg.panel").nth(panel).bounding_box()
    page.mouse.move(box["x"] + 58 + (box["width"] - 72) * (layer + 0.5) / count, box["y"] + 80)


@pytest.mark.parametrize("size", SIZES)
def test_opens_and_is_no_wider_than_the_window(opened, pages, size):
    page = opened("deep", size)
    for name in ("deep", "broken", "empty", "one", "evil", "scheme"):
        page.goto(pages[name].as_uri())
        expect(page.locator("h1")).to_be_visible()
        if name != "empty":
            page.get_by_text("Columns").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"], name


@pytest.mark.parametrize(("name", "scheme"), [("deep", "dark"), ("broken", "light")])
def test_passes_an_audit_of_accessibility(opened, name, scheme):
    """By axe-core: names, roles, order of headings, contrast of colours…"""
    page = opened(name, color_scheme=scheme)
    page.locator("summary").evaluate_all("all => all.forEach(one => (one.parentElement.open = true))")
    point_at(page, 3)
    page.mouse.down()
    page.mouse.up()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_verdict_comes_first(opened):
    page = opened("broken")
    assert "1 of 13 weights could not be brought to the target std." in page.locator("h1").inner_text()
    expect(page.locator(".note.fault")).to_contain_text("no-signal")
    page.locator(".note.fault .layer-link").click()
    expect(page.locator("#layer h3")).to_contain_text("body.0.0.weight")
    expect(page.locator("#layer .note")).to_contain_text("look upstream")


def test_what_to_do_is_stronger_than_what_is_wrong(opened):
    page = opened("broken")
    styles = page.locator(".note.fault p").evaluate_all("all => all.map((one) => Number(getComputedStyle(one).fontWeight))")
    assert styles[1] > styles[0]


def test_a_table_that_is_cut_off_says_so(opened):
    for size, needed in (("phone", True), ("desktop", False)):
        assert opened("broken", size).locator("#wider").is_visible() == needed


def test_a_layer_without_a_chart_still_has_its_card(opened):
    page = opened("one")
    expect(page.locator("#depth")).to_be_hidden()
    page.locator("#table tbody th button").click()
    expect(page.locator("#layer h3")).to_have_text("fc.weight")


def test_dark_and_light(opened):
    grounds = {}
    for scheme in ("light", "dark"):
        page = opened("deep", color_scheme=scheme)
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert grounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 22, 28)"}


# The table.


def test_sorts(opened):
    page = opened("deep")
    names = shown_names(page)
    assert names[0] == "body.0.0.weight"
    button = page.get_by_role("button", name="std before")
    for direction, reverse in (("ascending", False), ("descending", True)):
        button.click()
        assert button.locator("xpath=..").get_attribute("aria-sort") == direction
        stds = [float(text) for text in column(page, "std:0")]
        assert stds == sorted(stds, reverse=reverse)
    assert page.locator("#table [aria-sort]").count() == 1
    page.get_by_role("button", name="layer", exact=True).click()
    assert shown_names(page)[:4] == ["body.0.0.weight", "body.1.0.weight", "body.2.0.weight", "body.3.0.weight"]
    page.locator("thead [data-key=order] button").click()
    assert shown_names(page) == names


def test_what_was_not_measured_sorts_last(opened):
    page = opened("deep")
    page.get_by_text("Columns").click()
    page.get_by_label("activation").check()
    for _ in range(2):
        page.get_by_role("button", name="activation").click()
        assert column(page, "activation")[-1] == "-"
        assert column(page, "activation")[0] == "tanh"


def test_filters(opened):
    page = opened("broken")
    words = page.get_by_label("Filter by words")
    words.fill("BODY.1 linear")
    assert shown_names(page) == ["body.1.0.weight", "body.10.0.weight", "body.11.0.weight"]
    expect(page.locator("#count")).to_have_text("3 of 13 layers")
    words.fill("nonsense")
    expect(page.get_by_text("No layer fits the filter.")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#count")).to_have_text("13 layers")
    page.get_by_label("Filter by health").select_option("fault")
    assert shown_names(page) == ["body.0.0.weight"]


def test_columns_are_chosen(opened):
    page = opened("deep")
    assert page.get_by_role("columnheader", name="weight norm after").count() == 0
    page.get_by_text("Columns").click()
    page.get_by_label("weight norm after").check()
    expect(page.get_by_role("columnheader", name="weight norm after")).to_be_visible()
    assert float(column(page, "weight_norm:1")[0]) > 1
    page.keyboard.press("Escape")
    expect(page.locator(".choices")).to_be_hidden()


def test_rows_by_keyboard(opened):
    page = opened("deep")
    page.locator("#table tbody th button").first.focus()
    for key, row in (("ArrowDown", 1), ("ArrowDown", 2), ("End", 12), ("ArrowUp", 11), ("Home", 0), ("PageDown", 12)):
        page.keyboard.press(key)
        expect(page.locator("#table tbody th button").nth(row)).to_be_focused()
    assert page.locator("#table tbody th button[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    expect(page.locator("#layer h3")).to_have_text("head.weight")
    expect(page.locator("#table tbody tr[aria-current]")).to_contain_text("head.weight")


# The chart.


def test_pointing_names_the_layer(opened):
    page = opened("deep")
    tip = page.locator("#tip")
    expect(tip).to_be_hidden()
    for layer, name in ((0, "body.0.0.weight"), (7, "body.7.0.weight"), (12, "head.weight")):
        point_at(page, layer)
        expect(tip.locator(".name")).to_have_text(name)
    assert f"{13} of 13" in tip.inner_text()
    assert re.search(r"\bstd\s+0\.\d+\s+1\.000\s", tip.inner_text())
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()


def test_zooms_moves_and_shows_all_again(opened):
    page = opened("deep")
    line = page.locator("svg.panel").first.locator(".curve-line.side1").first
    ticks = page.locator("svg.panel").first.locator(".tick.x")
    whole = line.get_attribute("d")
    point_at(page, 2)
    page.mouse.down()
    point_at(page, 7)
    page.mouse.up()
    expect(ticks.first).to_have_text("3")
    assert line.get_attribute("d") != whole
    page.get_by_role("button", name="Later layers").click()
    expect(ticks.first).to_have_text("6")
    page.get_by_role("button", name="All layers").click()
    assert line.get_attribute("d") == whole
    closer = page.get_by_role("button", name="Zoom in")
    for _ in range(2):
        closer.click()
    assert ticks.count() <= 5
    assert closer.get_attribute("aria-disabled") == "true"
    page.locator("svg.panel").first.dblclick()
    assert line.get_attribute("d") == whole
    assert page.get_by_role("button", name="Zoom out").get_attribute("aria-disabled") == "true"


def test_curves_are_shown_and_hidden(opened):
    page = opened("deep")
    before = page.locator("svg.panel").first.locator(".curve-line.side0")
    assert before.count() == 2
    page.get_by_role("button", name="std between samples").click()
    assert before.count() == 1
    button = page.get_by_role("button", name="before", exact=True)
    button.click()
    assert before.count() == 0
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert before.count() == 1


def test_the_chart_by_keyboard(opened):
    page = opened("deep")
    chart = page.get_by_role("slider", name="Layer, by depth")
    page.get_by_role("button", name="All layers").focus()
    page.keyboard.press("Tab")
    expect(chart).to_be_focused()
    assert chart.evaluate("chart => getComputedStyle(chart).outlineStyle") == "solid"
    for key, name in (("ArrowRight", "body.1.0.weight"), ("End", "head.weight"), ("ArrowLeft", "body.11.0.weight")):
        page.keyboard.press(key)
        expect(page.locator("#tip .name")).to_have_text(name)
        assert chart.get_attribute("aria-valuetext").startswith(f"{name}, ")
    assert chart.get_attribute("aria-valuenow") == "12"
    page.keyboard.press("+")
    expect(page.locator("svg.panel").first.locator(".tick.x").first).to_have_text("7")
    page.keyboard.press("Enter")
    expect(page.locator("#layer h3")).to_have_text("body.11.0.weight")
    page.keyboard.press("Escape")
    expect(page.locator("#layer")).to_be_hidden()


def test_a_finger_slides_along_the_curve(opened):
    page = opened("deep", "phone", has_touch=True, is_mobile=True)
    page.locator("svg.panel").first.tap(position={"x": 315, "y": 60})
    expect(page.locator("#layer h3")).to_have_text("head.weight")


@pytest.mark.parametrize("layer", [0, 12])
def test_the_tip_does_not_lie_on_what_is_pointed_at(opened, layer):
    for size in SIZES:
        page = opened("deep", size)
        point_at(page, layer)
        tip, svg = page.locator("#tip").bounding_box(), page.locator("svg.panel").first.bounding_box()
        x, y = svg["x"] + 58 + (svg["width"] - 72) * (layer + 0.5) / 13, svg["y"] + 80
        assert not (tip["x"] <= x <= tip["x"] + tip["width"] and tip["y"] <= y <= tip["y"] + tip["height"])
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= SIZES[size]["width"]


def test_what_is_off_the_scale_is_marked(opened):
    page = opened("evil")
    assert page.locator("svg.panel .edges").count() > 0
    assert page.locator("#table tbody tr").nth(1).locator("td").filter(has_text="NaN").count() == 1
    assert EVIL in page.locator("#table tbody tr").nth(1).inner_text().replace("\n", "")


# The tree.


def colour_of(page, item):
    return item.locator(".label").evaluate("label => getComputedStyle(label, '::before').color")


def test_the_tree_shows_health_and_filters(opened):
    page = opened("broken")
    items = page.get_by_role("treeitem")
    body = items.filter(has_text=re.compile(r"^body"))
    assert colour_of(page, body) == colour_of(page, items.filter(has_text=re.compile(r"^0\.0"))) == "rgb(187, 45, 15)"
    assert colour_of(page, items.filter(has_text="head")) == "rgb(0, 121, 107)"
    assert "1 of 12" in body.inner_text()
    body.locator(".label").click()
    expect(page.locator("#count")).to_have_text("12 of 13 layers in body")
    assert body.get_attribute("aria-selected") == "true"
    body.locator(".twig").click()
    assert items.filter(visible=True).count() == 2
    body.locator(".label").click()
    expect(page.locator("#count")).to_have_text("13 layers")


def test_the_tree_by_keyboard(opened):
    page = opened("broken")
    page.get_by_role("treeitem").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("treeitem").first.get_attribute("aria-expanded") == "false"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#layer h3")).to_have_text("body.1.0.weight")
    page.keyboard.press("End")
    page.keyboard.press(" ")
    expect(page.locator("#layer h3")).to_have_text("head.weight")


# On paper, without scripts, and large.


def test_prints(opened):
    page = opened("deep", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for what in ("#filters", "#tree", ".hint"):
        expect(page.locator(what).first).to_be_hidden()
    expect(page.get_by_text("std between samples").first).to_be_visible()  # what the curves are
    for what in ("h1", "svg.panel", "#table tbody tr:last-child"):
        expect(page.locator(what).first).to_be_visible()
    for _ in range(10):  # the browser may still be laying it out for print
        pdf = page.pdf(format="A4", prefer_css_page_size=True)
        if (pages := len(re.findall(rb"/Type /Page\b", pdf))) > 1:
            break
        page.wait_for_timeout(200)
    assert pages in (2, 3)
    assert len(pdf) > 20_000


def test_without_scripts_there_is_the_verdict_and_the_table(opened):
    page = opened("deep", java_script_enabled=False)
    expect(page.get_by_role("heading", level=1)).to_contain_text("All 13 weights have the target std")
    expect(page.get_by_text("The chart needs JavaScript")).to_be_visible()
    assert len(page.locator("#table tbody tr").all()) == 13


def test_a_thousand_layers(opened):
    page = opened("thousand")
    assert page.locator("#table tbody tr").count() == 1000
    visible = page.locator("#tree li").evaluate_all("items => items.filter(item => item.offsetParent).length")
    assert 250 <= visible < 300  # one block of them open, in which a fault begins
    point_at(page, 500, count=1000)
    expect(page.locator("#tip .name")).to_have_text(re.compile(r"net\.blocks\.12\d\."))
    page.get_by_role("button", name="std before").click()
    assert page.locator("#table tbody tr").first.inner_text().split()[0] == "1000"
    page.get_by_label("Filter by words").fill("blocks.125.")
    assert len(shown_names(page)) == 4
    page.get_by_label("Filter by health").select_option("fault")
    assert shown_names(page) == ["net.blocks.125.query.weight"]


def laid_out(page):
    return page.locator("#table tbody tr").evaluate_all("rows => rows.filter(row => row.offsetParent).length")


def test_of_a_thousand_rows_only_those_near_are_laid_out(opened):
    page = opened("thousand")
    assert laid_out(page) == 100
    page.locator(".scroll").evaluate("place => place.scrollTop = place.scrollHeight")
    expect(page.locator("#table tbody tr").nth(150)).to_be_visible()
    assert laid_out(page) == 200
    page.get_by_role("button", name="std before").click()
    assert laid_out(page) == 100
    page.locator("#table tbody button").first.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.innerText") == "net.blocks.0.query.weight"
    expect(page.locator("#table tbody tr").last).to_be_visible()
    page.emulate_media(media="print")
    assert laid_out(page) == 1000
    page.emulate_media(media="screen")
    page.get_by_label("Filter by words").fill("value")
    assert page.locator("#table tbody tr:not([hidden]):not(.later)").count() == 100
    page.get_by_label("Filter by words").fill("blocks.125.")
    assert laid_out(page) == 4
