"""The page as a reader meets it: Chromium, from a file, with the network cut off."""

import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from quantarena.leaderboard.page.page import render

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")


CLAIM = {
    "method": "q_diffusion",
    "paper": "arXiv:0000.00000",
    "setting": "their model",
    "effect": "a tenth of the loss",
    "source": "table 1",
    "offline": {"than": "rtn", "metric": "lpips/alex-v0.1"},
}
OUTCOME = {"mean": -0.05, "low": -0.06, "high": -0.04, "n": 24, "seeds": 1, "other": 0.2}


@pytest.fixture(scope="module")
def address(results):
    folder, planned = results
    where = {"claim": CLAIM, "workload": "synthetic-shapes", "bits": "w4a8"}
    claims = [
        {**where, **OUTCOME, "policy": "uniform", "verdict": "holds"},
        {**where, **OUTCOME, "policy": "published", "verdict": "opposite"},
    ]
    path = render(
        folder,
        grid_title="Synthetic grid",
        planned=planned,
        command="./run_all.sh",
        claims=claims,
    )
    return path.as_uri()


@pytest.fixture
def open_page(browser, address):
    pages = []

    def open_one(width=1280, anchor="", scripts=True, **options):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, java_script_enabled=scripts, **options
        )
        page = context.new_page()
        page.complaints, page.requests = [], []
        page.on("console", lambda line: page.complaints.append(line.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(address + anchor)
        pages.append((page, context))
        return page

    yield open_one
    for page, context in pages:
        assert page.complaints == []
        assert {url.split("#")[0] for url in page.requests} == {address}
        context.close()


def column(page, number):
    table = page.locator("#w1 table.sortable").first
    rows = table.locator("tbody:not(.pinned) tr.ok:not(.filtered)")
    return [row.locator("> *").nth(number).inner_text().split("\n")[0] for row in rows.all()]


def test_sorted_by_rank_then_by_what_is_clicked(open_page):
    page = open_page()
    ranks = [int(text.split("–")[0]) for text in column(page, 0)]
    assert ranks == [1, 2, 3, 1, 2, 1, 2, 3], "three methods at w8a8, two at w4a8, three at w4a4"
    table = page.locator("#w1 table.sortable").first
    speed = table.locator("thead th", has_text="Speed")
    speed.locator("button").click()
    assert speed.get_attribute("aria-sort") == "descending"
    speeds = [float(text.rstrip("×")) for text in column(page, 8)]
    assert speeds == sorted(speeds, reverse=True)
    assert len(speeds) == 8
    assert page.locator("#w1 tbody.pinned").first.inner_text().startswith("ref")
    assert "steady supports" in table.locator("tbody tr").last.inner_text()


def test_filters_reach_tables_plots_and_the_address(open_page):
    page = open_page()
    page.locator("select[name=bits]").select_option("w4a4")
    assert set(column(page, 2)) == {"w4a4"}
    assert page.locator(".point:visible[data-bits='w8a8']").count() == 0
    assert page.locator(".point:visible").count() > 0
    assert "bits=w4a4" in page.url
    assert page.locator("#count").inner_text() == "6 of 20 shown"
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('20')")
    page.locator("select[name=workload]").select_option("synthetic-blobs")
    assert not page.locator("#w1").is_visible()
    page.locator("select[name=status]").select_option("failed")
    assert page.locator("#count").inner_text() == "1 of 20 shown"


def test_a_shared_address_restores_the_filter(open_page):
    page = open_page(anchor="#bits=w8a8&method=rtn")
    assert column(page, 2) == ["w8a8"]


def test_gallery_changes_image_bits_and_amplification(open_page):
    page = open_page()
    gallery = page.locator("#w1 .gallery")
    card = gallery.locator(".card[data-bits='w4a4']").first

    def picture(name):
        return card.locator(name).evaluate("e => getComputedStyle(e).backgroundImage")

    before = picture(".pic")
    assert before.startswith('url("data:image/webp')
    assert picture(".diff").count("url(") == 2
    assert gallery.locator(".caption").inner_text() == "“red dot”"
    gallery.locator(".strip label").nth(3).click()
    assert picture(".pic") not in ("none", before)
    assert gallery.locator(".caption").inner_text() == "“yellow sun”"
    gallery.locator(".chips label", has_text="w8a8").click()
    assert not card.is_visible()
    assert gallery.locator(".card:visible").count() == 4
    gallery.locator(".chips label", has_text="16").click()
    style = gallery.locator(".diff").first.evaluate("e => getComputedStyle(e).filter")
    assert style == "brightness(16)"


def test_details_open_by_keyboard_and_give_the_focus_back(open_page):
    page = open_page()
    link = page.locator("#w1 table.sortable a.open").nth(1)
    link.focus()
    page.keyboard.press("Enter")
    drawer = page.locator("#drawer")
    assert drawer.is_visible()
    assert "Parity of packed and simulated" in drawer.inner_text()
    assert "#cell-" in page.url
    page.keyboard.press("Escape")
    assert not drawer.is_visible()
    assert link.evaluate("e => e === document.activeElement")


def test_plot_points_speak_on_focus(open_page):
    page = open_page()
    point = page.locator("#w1 .point").last
    point.focus()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert "LPIPS" in tip.inner_text()
    assert "times as fast" in page.locator("#w1 .point").first.get_attribute("aria-label")
    page.keyboard.press("Tab")
    page.locator("h1").click()


def test_first_tab_skips_to_the_boards(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the boards"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_no_sideways_scrolling_and_a_screenshot(open_page, tmp_path, scheme, width):
    page = open_page(width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot = tmp_path / f"{scheme}-{width}.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 50_000
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert contrast(ink, paper) > 7


def contrast(one, other):
    def luminance(colour):
        parts = [int(v) / 255 for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_readable_without_scripts(open_page):
    page = open_page(scripts=False)
    assert not page.locator(".filters").is_visible()
    assert "w4a8" in page.locator("#w1 table.sortable").first.inner_text()
    gallery = page.locator("#w1 .gallery")
    gallery.locator(".strip label").nth(2).click()
    assert gallery.locator(".caption").inner_text() == "“blue moon”"
    page.locator("#w1 a.open").nth(1).click()
    assert page.locator(".record .body:target").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_axe_finds_nothing_serious(browser, axe, address, scripts, width, scheme, tmp_path):
    """Without scripts the page is its own HTML with the scripts cut out: axe is one itself."""
    path = Path(url2pathname(urlsplit(address).path))
    if not scripts:
        bare = re.sub("<script>.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        path = tmp_path / "bare.html"
        path.write_text(bare, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.classList.contains('js')") == scripts
    for details in page.locator("details.rule, .records, .record").all()[:12]:
        details.evaluate("e => { e.open = true }")
    assert [fault for fault in axe(page) if fault[1] in ("serious", "critical")] == []
    page.close()
