"""Voting as a voter meets it: Chromium on a real server, by keyboard alone, by mouse, by touch."""

import re

import pytest

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")


# ---- by keyboard alone -------------------------------------------------------------------------


def test_a_vote_by_keyboard_alone(visit, serving):
    page = visit()
    assert page.focused() == "Image A, not placed"
    page.keys("3", "ArrowRight", "1", "ArrowRight", "t", "ArrowRight", "2")
    assert page.order() == [["1st", "B", "C"], ["2nd", "D"], ["3rd", "A"], ["4th"]]
    assert page.focused() == "Image D, rank 2"
    page.keys("ArrowUp")
    assert page.focused() == "Image D, rank 1, tied with B and C"
    page.keys("u")
    assert page.focused() == "Image D, rank 2"
    page.keys("ArrowDown", "ArrowDown", "u", "u")
    page.keys("Enter")
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
    page.keys("Enter")
    page.locator("#reveal").wait_for(state="hidden")
    assert page.focused() == "Image A, not placed"


def test_many_votes_in_a_row_without_a_mouse(visit, serving):
    page = visit()
    seen = set()
    for number in range(6):
        seen.add(page.locator("#images img").first.get_attribute("data-src"))
        page.keys("1", "Enter", "Enter")
        page.locator("#reveal").wait_for()
        assert (
            page.locator("#tally").inner_text()
            == f"{number + 1} vote{'s' if number else ''} this visit"
        )
        page.keys("Enter")
        page.locator("#reveal").wait_for(state="hidden")
    events = serving.log.events()
    assert [event.mode for event in events] == ["best"] * 6
    assert {event.tiers for event in events} == {((0,), (1, 2, 3))}
    assert len(seen) == 6


def test_what_is_not_placed_is_asked_about_once(visit, serving):
    page = visit()
    page.keys("Enter")
    page.says("Place at least one image")
    page.keys("2", "ArrowRight", "1", "Enter")
    page.says("Not placed: C, D. They would tie for last.")
    assert serving.log.events() == []
    page.keys("Enter")
    page.locator("#reveal").wait_for()
    assert serving.log.events()[0].tiers == ((1,), (0,), (2, 3))


def test_skip_and_all_bad(visit, serving):
    page = visit()
    first = page.locator("#images img").first.get_attribute("data-src")
    page.keys("s")
    page.says("Skipped.")
    assert page.locator("#images img").first.get_attribute("data-src") != first
    page.keys("b")
    page.locator("#reveal").wait_for()
    assert [event.mode for event in serving.log.events()] == ["skip", "bad"]
    assert serving.log.events()[1].tiers == ((0, 1, 2, 3),)


def test_a_vote_is_taken_back_by_its_button(visit, serving):
    page = visit()
    page.keys("1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    (vote,) = serving.log.events()
    page.locator("#take-back").click()
    page.says("Your vote is taken back")
    assert page.locator("#take-back").is_disabled()
    assert [event.kind for event in serving.log.events()] == ["vote", "withdraw"]
    assert serving.log.events()[1].vote == vote.id
    page.keys("Enter")
    page.locator("#actions").wait_for()
    page.keys("1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    assert page.locator("#reveal-title").inner_text() == "Your vote is in"
    assert page.locator("#take-back").is_enabled()


def test_flip_shows_the_reference_in_place(visit):
    page = visit()
    image = page.locator("#images img").first
    mine = image.get_attribute("src")
    reference = page.locator("#reference img").get_attribute("src")
    page.keys("Space")
    assert image.get_attribute("src") == reference
    page.says("The reference in place of image A")
    page.keys("Space")
    assert image.get_attribute("src") == mine


def test_zoom_opens_closes_and_gives_the_focus_back(visit):
    page = visit()
    page.keys("ArrowRight", "z")
    zoom = page.locator("#zoom")
    assert zoom.is_visible()
    assert page.locator("#zoom-title").inner_text() == "Image B"
    assert page.locator("#zoom img").evaluate("e => e.clientWidth") > 500
    page.keys("3")
    page.keys("Escape")
    assert not zoom.is_visible()
    page.eventually("document.activeElement.getAttribute('aria-label') === 'Image B, not placed'")
    page.keys("z", "z")
    assert not zoom.is_visible()


def test_single_keys_can_be_switched_off(visit):
    page = visit()
    page.locator("details.help summary").click()
    page.locator("#shortcuts").uncheck()
    page.locator(".card").first.focus()
    page.keys("1", "s", "b")
    assert page.order() == [["1st"], ["2nd"], ["3rd"], ["4th"]]
    page.keys("ArrowUp")
    assert page.order()[3] == ["4th", "A"]


def test_tab_reaches_everything_and_enter_on_a_button_presses_it(visit, serving):
    page = visit()
    reached = []
    for _ in range(25):
        page.keys("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"undo", "bad", "skip", "board-select"} - set(reached) == {"undo"}  # it is disabled
    page.locator("#skip").focus()
    page.keys("Enter")
    page.says("Skipped.")
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
    assert page.order() == [["1st", "B"], ["2nd", "A", "C"], ["3rd"], ["4th", "D"]]
    drag(page, page.locator(".chip", has_text="D"), tiers.nth(2))
    assert page.order()[2] == ["3rd", "D"]
    page.locator("#undo").click()
    assert page.order()[3] == ["4th", "D"]
    page.locator(".card").nth(3).locator(".rank").nth(2).click()
    page.locator("#submit").click()
    page.locator("#reveal").wait_for()
    assert serving.log.events()[0].tiers == ((1,), (0, 2), (3,))
    page.locator("#next").click()
    page.locator("#reveal").wait_for(state="hidden")
    assert page.order() == [["1st"], ["2nd"], ["3rd"], ["4th"]]


def test_a_drop_beside_the_tiers_changes_nothing(visit):
    page = visit()
    drag(page, page.locator("#images .frame").first, page.locator("h1"))
    assert page.order() == [["1st"], ["2nd"], ["3rd"], ["4th"]]
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


def test_a_finger_drags_the_letter_into_a_tier(visit):
    page = visit(390, 1500, has_touch=True, is_mobile=True)
    start = page.locator(".card").nth(3).locator(".letter").bounding_box()
    end = page.locator("#tiers .tier").nth(1).bounding_box()
    wire = page.context.new_cdp_session(page.page)

    def touch(kind, *points):
        found = [{"x": x, "y": y} for x, y in points]
        wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": found})

    x, y = start["x"] + 10, start["y"] + 10
    touch("touchStart", (x, y))
    for step in range(1, 9):
        along = step / 8
        touch(
            "touchMove",
            (x + along * (end["x"] + 60 - x), y + along * (end["y"] + 20 - y)),
        )
    touch("touchEnd")
    page.eventually("document.querySelector('#tiers .tier:nth-child(2) .chip') !== null")
    assert page.order()[1] == ["2nd", "D"]


# ---- blindness, loading, faults ----------------------------------------------------------------


def test_no_name_is_anywhere_before_the_vote(visit, serving):
    page = visit()
    stage = page.locator("main").evaluate("e => e.outerHTML")
    names = [name for every in serving.desk.catalogue.contestants.values() for name in every]
    assert not [name for name in names if name in stage or name.split("@")[0] in stage]


def test_the_next_set_is_loaded_before_it_is_needed(visit):
    page = visit()
    page.has_loaded(10)
    page.keys("1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    page.has_loaded(15)
    before = len(page.requests)
    page.keys("Enter")
    page.locator("#reveal").wait_for(state="hidden")
    page.eventually("[...document.querySelectorAll('#images img')].every(e => e.complete)")
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
    page.keys("1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    page.eventually("document.getElementById('board-note').textContent.endsWith(': 1 vote')")
    assert page.locator("#board tbody tr").first.locator("td").last.inner_text() == "1"
    label = page.locator("#board svg").first.get_attribute("aria-label")
    assert re.fullmatch(r"[\d.]+, from -?[\d.]+ to [\d.]+", label)


def test_a_server_that_is_away_loses_nothing(visit, serving):
    page = visit()
    page.route("**/api/vote", lambda route: route.abort())
    page.keys("1", "Enter", "Enter")
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
    page.keys("1", "Enter", "Enter")
    page.locator("#error").wait_for()
    assert "answered already" in page.locator("#error").inner_text()
    assert page.order() == [["1st"], ["2nd"], ["3rd"], ["4th"]]
    page.keys("1", "Enter", "Enter")
    page.locator("#reveal").wait_for()
    assert len(serving.log.events()) == 2
    page.complaints[:] = [line for line in page.complaints if "409" not in line]
