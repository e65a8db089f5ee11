"""Voting as a voter meets it: Chromium on a real server, by mouse, by touch, by keyboard alone."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

FLAGS = [
    f"--{flag}"
    for flag in (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-sync",
        "disable-background-networking",
        "disable-component-update",
    )
]


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not path:
        pytest.skip("no Chromium found: install one or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, serving):
    """Opens the page with a set on it. Nothing may complain, and nothing leaves the server."""
    contexts = []

    def opened(width=1280, height=900, server=serving, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        page.complaints, page.requests = [], []
        page.on("console", lambda line: page.complaints.append(line.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(server.place.url)
        page.locator("#images .card").nth(1).wait_for()
        eventually(page, "document.getElementById('board').tBodies[0].rows.length > 0")
        contexts.append((context, page, server))
        return page

    yield opened
    for context, page, server in contexts:
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith(server.place.url)] == []
        context.close()


def eventually(page, expression, argument=None):
    """Wait until a script says true; Playwright's own wait needs what the page's policy forbids."""
    end = time.monotonic() + 15
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(50)


LOADED = "performance.getEntriesByType('resource').filter(e => e.name.includes('/image/')).length"


def status(page, text):
    eventually(page, "text => document.getElementById('status').textContent.includes(text)", text)


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def order(page):
    return [tier.inner_text().split() for tier in page.locator("#tiers .tier").all()]


def letter_of(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


# ---- by keyboard alone -------------------------------------------------------------------------


def test_a_vote_by_keyboard_alone(visit, serving):
    page = visit()
    assert letter_of(page) == "Image A, not placed"
    press(page, "3", "ArrowRight", "1", "ArrowRight", "t", "ArrowRight", "2")
    assert order(page) == [["1st", "B", "C"], ["2nd", "D"], ["3rd", "A"], ["4th"]]
    assert letter_of(page) == "Image D, rank 2"
    press(page, "ArrowUp")
    assert letter_of(page) == "Image D, rank 1, tied with B and C"
    press(page, "u")
    assert letter_of(page) == "Image D, rank 2"
    press(page, "ArrowDown", "ArrowDown", "u", "u")
    press(page, "Enter")
    page.locator("#reveal").wait_for()
    (event,) = serving.log.events()
    assert event.tiers == ((1, 2), (3,), (0,))
    assert event.mode == "rank"
    names = [shown.contestant for shown in event.shown]
    shown = page.locator("#revealed li").all_inner_texts()
    assert [re.sub(r"\s+", " ", line) for line in shown] == [
        f"1st B {names[1]}",
        f"1st C {names[2]}",
        f"2nd D {names[3]}",
        f"3rd A {names[0]}",
    ]
    press(page, "Enter")
    page.locator("#reveal").wait_for(state="hidden")
    assert letter_of(page) == "Image A, not placed"


def test_many_votes_in_a_row_without_a_mouse(visit, serving):
    page = visit()
    seen = set()
    for number in range(6):
        seen.add(page.locator("#images img").first.get_attribute("data-src"))
        press(page, "1", "Enter", "Enter")
        page.locator("#reveal").wait_for()
        assert (
            page.locator("#tally").inner_text()
            == f"{number + 1} vote{'s' if number else ''} this visit"
        )
        press(page, "Enter")
        page.locator("#reveal").wait_for(state="hidden")
    events = serving.log.events()
    assert [event.mode for event in events] == ["best"] * 6
    assert {event.tiers for event in events} == {((0,), (1, 2, 3))}
    assert len(seen) == 6


def test_what_is_not_placed_is_asked_about_once(visit, serving):
    page = visit()
    press(page, "Enter")
    status(page, "Place at least one image")
    press(page, "2", "ArrowRight", "1", "Enter")
    status(page, "Not placed: C, D. They would tie for last.")
    assert serving.log.events() == []
    press(page, "Enter")
    page.locator("#reveal").wait_for()
    assert serving.log.events()[0].tiers == ((1,), (0,), (2, 3))


def test_skip_and_all_bad(visit, serving):
    page = visit()
    first = page.locator("#images img").first.get_attribute("data-src")
    press(page, "s")
    status(page, "Skipped.")
    assert page.locator("#images img").first.get_attribute("data-src") != first
    press(page, "b")
    page.locator("#reveal").wait_for()
    assert [event.mode for event in serving.log.events()] == ["skip", "bad"]
    assert serving.log.events()[1].tiers == ((0, 1, 2, 3),)


def test_flip_shows_the_reference_in_place(visit):
    page = visit()
    image = page.locator("#images img").first
    mine = image.get_attribute("src")
    reference = page.locator("#reference img").get_attribute("src")
    press(page, "Space")
    assert image.get_attribute("src") == reference
    status(page, "The reference in place of image A")
    press(page, "Space")
    assert image.get_attribute("src") == mine


def test_zoom_opens_closes_and_gives_the_focus_back(visit):
    page = visit()
    press(page, "ArrowRight", "z")
    zoom = page.locator("#zoom")
    assert zoom.is_visible()
    assert page.locator("#zoom-title").inner_text() == "Image B"
    assert page.locator("#zoom img").evaluate("e => e.clientWidth") > 500
    press(page, "3")
    press(page, "Escape")
    assert not zoom.is_visible()
    eventually(page, "document.activeElement.getAttribute('aria-label') === 'Image B, not placed'")
    press(page, "z", "z")
    assert not zoom.is_visible()


def test_single_keys_can_be_switched_off(visit):
    page = visit()
    page.locator("details.help summary").click()
    page.locator("#shortcuts").uncheck()
    page.locator(".card").first.focus()
    press(page, "1", "s", "b")
    assert order(page) == [["1st"], ["2nd"], ["3rd"], ["4th"]]
    press(page, "ArrowUp")
    assert order(page)[3] == ["4th", "A"]


def test_tab_reaches_everything_and_enter_on_a_button_presses_it(visit, serving):
    page = visit()
    reached = []
    for _ in range(25):
        press(page, "Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"undo", "bad", "skip", "board-select"} - set(reached) == {"undo"}  # it is disabled
    page.locator("#skip").focus()
    press(page, "Enter")
    status(page, "Skipped.")
    assert [event.mode for event in serving.log.events()] == ["skip"]


# ---- by mouse and by touch ---------------------------------------------------------------------


def drag(page, source, target):
    start, end = source.bounding_box(), target.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + end["width"] - 12, end["y"] + end["height"] / 2, steps=8)
    page.mouse.up()


def test_a_vote_by_mouse_alone(visit, serving):
    page = visit()
    frames, tiers = page.locator("#images .frame"), page.locator("#tiers .tier")
    for image, tier in ((0, 1), (1, 0), (2, 1), (3, 3)):
        drag(page, frames.nth(image), tiers.nth(tier))
    assert order(page) == [["1st", "B"], ["2nd", "A", "C"], ["3rd"], ["4th", "D"]]
    drag(page, page.locator(".chip", has_text="D"), tiers.nth(2))
    assert order(page)[2] == ["3rd", "D"]
    page.locator("#undo").click()
    assert order(page)[3] == ["4th", "D"]
    page.locator(".card").nth(3).locator(".rank").nth(2).click()
    page.locator("#submit").click()
    page.locator("#reveal").wait_for()
    assert serving.log.events()[0].tiers == ((1,), (0, 2), (3,))
    page.locator("#next").click()
    page.locator("#reveal").wait_for(state="hidden")
    assert order(page) == [["1st"], ["2nd"], ["3rd"], ["4th"]]


def test_a_drop_beside_the_tiers_changes_nothing(visit):
    page = visit()
    drag(page, page.locator("#images .frame").first, page.locator("h1"))
    assert order(page) == [["1st"], ["2nd"], ["3rd"], ["4th"]]
    assert page.locator(".ghost").count() == 0


def test_a_pressed_rank_can_be_taken_back(visit):
    page = visit()
    button = page.locator(".card").first.locator(".rank").first
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"


def test_a_vote_on_a_phone(visit, serving):
    page = visit(390, 844, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for number, one in enumerate(page.locator(".card").all()):
        one.locator(".rank").nth(number % 2).tap()
    small = page.evaluate(
        "[...document.querySelectorAll('.rank, .tool, .actions button')].map(e =>"
        " e.getBoundingClientRect()).filter(r => r.width < 32 || r.height < 32).length"
    )
    assert small == 0
    page.locator("#submit").tap()
    page.locator("#reveal").wait_for()
    assert serving.log.events()[0].tiers == ((0, 2), (1, 3))
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#next").tap()
    page.locator("#reveal").wait_for(state="hidden")


# ---- blindness, loading, faults ----------------------------------------------------------------


def test_no_name_is_anywhere_before_the_vote(visit, serving):
    page = visit()
    stage = page.locator("main").evaluate("e => e.outerHTML")
    names = [name for every in serving.desk.catalogue.contestants.values() for name in every]
    assert not [name for name in names if name in stage or name.split("@")[0] in stage]


def test_the_next_set_is_loaded_before_it_is_needed(visit):
    page = visit()
    eventually(page, f"{LOADED} >= 10")
    press(page, "1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    eventually(page, f"{LOADED} >= 15")
    before = len(page.requests)
    press(page, "Enter")
    page.locator("#reveal").wait_for(state="hidden")
    eventually(page, "[...document.querySelectorAll('#images img')].every(e => e.complete)")
    new = [url for url in page.requests[before:] if "/api/set" in url]
    assert new == []


def test_reloading_shows_the_same_set(visit):
    page = visit()
    images = page.locator("#images img").evaluate_all("all => all.map(e => e.dataset.src)")
    page.reload()
    page.locator("#images .card").nth(1).wait_for()
    assert page.locator("#images img").evaluate_all("all => all.map(e => e.dataset.src)") == images


def test_the_board_counts_the_vote(visit):
    page = visit()
    press(page, "1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    eventually(page, "document.getElementById('board-note').textContent.endsWith(': 1 vote')")
    assert page.locator("#board tbody tr").first.locator("td").last.inner_text() == "1"
    label = page.locator("#board svg").first.get_attribute("aria-label")
    assert re.fullmatch(r"[\d.]+, from -?[\d.]+ to [\d.]+", label)


def test_a_server_that_is_away_loses_nothing(visit, serving):
    page = visit()
    page.route("**/api/vote", lambda route: route.abort())
    press(page, "1", "Enter", "Enter")
    page.wait_for_timeout(300)
    page.unroute("**/api/vote")
    page.locator("#reveal").wait_for()
    assert len(serving.log.events()) == 1
    failures = [line for line in page.complaints if "ERR_FAILED" in line]
    page.complaints[:] = [line for line in page.complaints if line not in failures]
    assert failures


def test_a_set_that_is_answered_in_another_tab_is_replaced(visit, serving, new_client):
    page = visit()
    token = page.evaluate("localStorage.getItem('quantarena-voter')")
    other = new_client(serving.place.port, token)
    other.vote(other.ballot(other.set()))
    press(page, "1", "Enter", "Enter")
    page.locator("#error").wait_for()
    assert "answered already" in page.locator("#error").inner_text()
    assert order(page) == [["1st"], ["2nd"], ["3rd"], ["4th"]]
    press(page, "1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    assert len(serving.log.events()) == 2
    page.complaints[:] = [line for line in page.complaints if "409" not in line]


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
    press(page, "1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    assert f"{HOSTILE}@w4a4" in page.locator("#revealed").inner_text()
    eventually(page, "document.getElementById('board-note').textContent.includes('1 vote')")
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
    eventually(page, "document.images[document.images.length - 1].complete")
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
    press(page, "ArrowRight")
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    times = page.evaluate(
        "[...document.querySelectorAll('*')].map(e => getComputedStyle(e).transitionDuration)"
    )
    assert set(times) == {"0s"}


def test_lists_names_and_live_regions_for_a_screen_reader(visit):
    page = visit()
    press(page, "1", "ArrowRight", "t")
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


def test_axe_finds_nothing(visit):
    """With axe-core beside the tests: AXE=path/to/axe.min.js (npm pack axe-core)."""
    path = os.environ.get("AXE")
    if not path:
        pytest.skip("set AXE to the path of axe.min.js")
    page = visit(bypass_csp=True)
    press(page, "1", "ArrowRight", "2")
    page.evaluate(Path(path).read_text())
    for _ in range(2):
        found = page.evaluate("axe.run()")
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
        press(page, "Enter", "Enter")
        page.locator("#reveal").wait_for()
