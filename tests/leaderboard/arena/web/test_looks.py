"""The page in Chromium: hostile names, contrast, and what a screen reader is told."""

import json
import re

import pytest

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_hostile_names_are_text(visit, serve, make_results, make_grid, tmp_path):
    folder = tmp_path / "hostile"
    plan = make_grid(
        images=4, workloads=("synthetic-shapes",), methods=(HOSTILE, "rtn"), bits=("w4a4",)
    )
    make_results(folder, plan=plan, broken=False)
    for path in (folder / "rows").glob("*.json"):
        row = json.loads(path.read_text())
        row["workload"]["prompts"] = [f"\"'></q>{HOSTILE}\u202e"] * 4
        path.write_text(json.dumps(row))
    page = visit(server=serve(folder, log=tmp_path / "h.sqlite"))
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    assert HOSTILE in page.locator("#prompt").inner_text()
    page.keys("1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    assert f"{HOSTILE}@w4a4" in page.locator("#revealed").inner_text()
    page.eventually("document.getElementById('board-note').textContent.includes('1 vote')")
    assert HOSTILE in page.locator("#board").inner_text()
    assert page.locator("script").count() == 1
    assert page.evaluate("[...document.images].filter(e => !e.src.includes('/image/')).length") == 1


def test_the_policy_stops_what_should_ever_get_in(visit):
    page = visit()
    for script, said in [
        ("document.body.innerHTML = '<img src=x onerror=alert(1)>'", "TrustedHTML"),
        ("document.body.setAttribute('onclick', 'alert(1)')", "TrustedScript"),
        ("document.body.append(Object.assign(document.createElement('script'), {src: '/x'}))",
         "TrustedScriptURL"),
    ]:  # fmt: skip
        with pytest.raises(sync_api.Error, match=said):
            page.evaluate(script)
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x'}))")
    page.eventually("document.images[document.images.length - 1].complete")
    assert any("Content Security Policy" in line for line in page.complaints)
    page.complaints.clear()
    page.requests[:] = [url for url in page.requests if ":9/x" not in url]


# ---- looks and assistive technology ------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling_and_enough_contrast(visit, scheme, width, tmp_path):
    page = visit(width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inks = page.evaluate(
        "['body', '.quiet', '.rank', '.primary', '#board th'].map(s => {"
        " const e = document.querySelector(s); let p = e;"
        " while (getComputedStyle(p).backgroundColor === 'rgba(0, 0, 0, 0)') p = p.parentElement;"
        " return [getComputedStyle(e).color, getComputedStyle(p).backgroundColor]; })"
    )
    assert min(contrast(*pair) for pair in inks) > 4.5
    shot = tmp_path / f"{scheme}-{width}.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 20_000


def contrast(one, other):
    def luminance(colour):
        parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_focus_is_seen_and_motion_can_be_off(visit):
    page = visit(reduced_motion="reduce")
    page.keys("ArrowRight")
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    times = page.evaluate(
        "[...document.querySelectorAll('*')].map(e => getComputedStyle(e).transitionDuration)"
    )
    assert set(times) == {"0s"}


def test_lists_names_and_live_regions_for_a_screen_reader(visit):
    page = visit()
    page.keys("1", "ArrowRight", "t")
    tree = page.locator("main").aria_snapshot()
    assert '- list "Images to order":' in tree
    assert '- group "Image A, rank 1, tied with B"' in tree
    assert 'listitem "Rank 1: A and B, tied"' in tree
    assert 'button "Image A: rank 1" [pressed]' in tree
    assert 'button "Image C: rank 2"' in tree
    assert 'button "Show the reference in place of image D"' in tree
    assert page.locator("#status").get_attribute("role") == "status"
    assert page.locator("#status").inner_text() == "Image B: rank 1, tied with A"
    assert page.locator("h1").count() == 1
    assert page.evaluate("[...document.images].filter(e => !e.hasAttribute('alt')).length") == 0


def test_axe_finds_nothing(visit, axe):
    page = visit(bypass_csp=True)
    page.keys("1", "ArrowRight", "2")
    assert axe(page) == []
    page.keys("Enter", "Enter")
    page.locator("#reveal").wait_for()
    assert axe(page) == []
