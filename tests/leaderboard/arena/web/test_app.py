import io
import json

import numpy as np
import pytest
from PIL import Image

from quantarena.leaderboard.arena.events import DESTROYED
from quantarena.leaderboard.arena.web.app import receipt_view


def test_the_page_and_its_files(client):
    for path, kind in [
        ("/", "text/html"),
        ("/style.css", "text/css"),
        ("/app.js", "text/javascript"),
        ("/state.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
    ]:
        status, _, headers = client("GET", path)
        assert (status, headers.get_content_type()) == (200, kind)
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers
    page = client("GET", "/")[1].decode()
    assert "http://" not in page
    assert "https://" not in page
    assert "<script>" not in page
    assert " style=" not in page
    assert client("GET", "/votes.sqlite")[0] == 404
    assert client("GET", "/../app.py")[0] == 404


def test_a_set_is_blind(client, serving):
    issued = client.set()
    assert set(issued) == {"id", "task", "prompt", "board", "images", "reference", "expires"}
    text = json.dumps(issued)
    names = [name for every in serving.desk.catalogue.contestants.values() for name in every]
    assert not [name for name in names if name in text]
    sizes = set()
    for src in [*issued["images"], issued["reference"]]:
        status, data, headers = client("GET", src)
        assert (status, headers.get_content_type()) == (200, "image/png")
        image = Image.open(io.BytesIO(data))
        assert image.info == {}
        sizes.add(image.size)
        assert "last-modified" not in headers
        assert "etag" not in headers
    assert len(sizes) == 1


def test_images_are_those_of_the_log(client, serving):
    issued = client.set()
    client.vote(client.ballot(issued))
    (event,) = serving.log.events()
    for src, shown in zip(issued["images"], event.shown, strict=True):
        placed = serving.desk.placed(src.rpartition("/")[2])
        assert (placed.contestant, placed.sha256) == (shown.contestant, shown.sha256)
        pixels = np.asarray(Image.open(io.BytesIO(client("GET", src)[1])))
        assert np.array_equal(pixels, np.asarray(Image.open(placed.path).convert("RGB")))


def test_names_come_after_the_vote_in_the_order_shown(client, serving):
    issued = client.set()
    status, receipt, _ = client.vote(client.ballot(issued, tiers=[[2], [0, 3], [1]]))
    (event,) = serving.log.events()
    assert status == 200
    assert receipt["names"] == [shown.contestant for shown in event.shown]
    assert event.tiers == ((2,), (0, 3), (1,))
    assert (receipt["counts"], receipt["number"], receipt["duplicate"]) == (True, 1, False)
    assert receipt["next"]["id"] != issued["id"]


def test_checks_are_named_as_such_after_the_vote(serve, new_client):
    serving = serve(gold=0.5)
    client = new_client(serving.place.port)
    issued = client.set()
    for _ in range(30):
        receipt = client.vote(client.ballot(issued))[1]
        if receipt["purpose"] == "gold-order":
            break
        issued = receipt["next"]
    assert "spoilt on purpose, as a check" in receipt["names"]
    assert not receipt["counts"]
    assert DESTROYED not in json.dumps(receipt)


def test_a_lost_reply_is_sent_again_and_the_next_set_stays(client, serving):
    body = client.ballot(client.set())
    first, second = client.vote(body)[1], client.vote(body)[1]
    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert second["names"] == first["names"]
    assert second["next"]["id"] == first["next"]["id"]
    assert len(serving.log.events()) == 1


def test_the_live_board_follows_the_votes(client, serving):
    key = client.visit["boards"][0]["key"]
    status, board, _ = client("GET", f"/api/board?board={key}")
    assert (status, board["votes"], board["fresh"]) == (200, 0, True)
    names = serving.desk.catalogue.contestants[key]
    assert sorted(line["contestant"] for line in board["lines"]) == sorted(names)
    issued = client.set()
    for _ in range(4):
        issued = client.vote(client.ballot(issued))[1]["next"]
    boards = [client("GET", f"/api/board?board={b['key']}")[1] for b in client.visit["boards"]]
    assert sum(board["votes"] for board in boards) + 4 * (not all(b["fresh"] for b in boards)) >= 4
    assert client("GET", "/api/board?board=none")[0] == 404


def test_a_session_keeps_its_judge_and_another_browser_is_another(client, serving, new_client):
    again = client("POST", "/api/session", {})[1]
    assert again["token"] == client.token
    assert again["session"] != client.session
    other = new_client(serving.place.port)
    assert other.token != client.token
    client.vote(client.ballot(client.set()))
    other.vote(other.ballot(other.set()))
    judges = {event.judge for event in serving.log.events()}
    assert len(judges) == 2
    assert not any(judge in client.token + other.token for judge in judges)


def test_a_token_outlives_the_server(serve, new_client):
    first = serve()
    client = new_client(first.place.port)
    issued = client.set()
    second = serve()
    again = new_client(second.place.port, client.token)
    assert again.set()["id"] == issued["id"]
    assert again.vote(again.ballot(issued))[0] == 200


@pytest.mark.parametrize("mode", ["skip", "bad", "best"])
def test_every_mode(client, serving, mode):
    issued = client.set()
    tiers = {"skip": [], "bad": [[0, 1, 2, 3]], "best": [[1], [0, 2, 3]]}[mode]
    assert client.vote(client.ballot(issued, mode=mode, tiers=tiers))[0] == 200
    assert [event.mode for event in serving.log.events()] == [mode]


def test_the_page_version_is_in_the_vote(client, serving):
    client.vote(client.ballot(client.set()))
    assert len(serving.log.events()[0].page) == 12


def test_the_receipt_of_a_vote_has_no_hash_and_no_path(serving, ann, make_answer):
    issued = serving.desk.issue(ann).result()
    receipt = serving.desk.answer(ann, make_answer(issued)).result()
    text = json.dumps(receipt_view(receipt))
    assert "/" not in text.replace("image/", "")
    assert issued.shown[0].sha256 not in text


def test_a_full_disk_refuses_the_vote_and_takes_it_when_there_is_room(client, serving):
    def room(pages):
        sql = f"PRAGMA max_page_count = {pages}"
        serving.log.transact(lambda db: db.execute(sql)).result()

    body = client.ballot(client.set())
    room(1)
    issued, held = None, body
    for _ in range(200):  # until the last free page is used
        status, value, _ = client.vote(held)
        if status != 200:
            break
        issued = value["next"]
        if issued is None:
            status, issued, _ = client(
                "POST", "/api/set", {"session": client.session, "holding": []}
            )
            if status != 200:
                break
        held = client.ballot(issued)
    assert status == 503
    before = len(serving.log.events())
    room(1_000_000)
    assert client.vote(held)[0] == 200
    assert len(serving.log.events()) == before + 1
    assert serving.desk.memory.revision == before + 1


def test_a_vote_is_taken_back_once(client, serving, new_client):
    ballot = client.ballot(client.set())
    client.vote(ballot)
    body = {"id": "11111111-1111-4111-8111-111111111111", "vote": ballot["id"]}
    body["session"] = client.session
    other = new_client(client.port)
    assert other("POST", "/api/withdraw", body | {"session": other.session})[0] == 403
    assert client("POST", "/api/withdraw", body)[:2] == (
        200,
        {"vote": ballot["id"], "duplicate": False},
    )
    assert client("POST", "/api/withdraw", body)[1]["duplicate"] is True
    assert client("POST", "/api/withdraw", body | {"more": 1})[0] == 422
    assert client("POST", "/api/withdraw", body, [("origin", "http://x.example")])[0] == 403
    assert [event.kind for event in serving.log.events()] == ["vote", "withdraw"]


def test_a_voter_who_has_cast_all_votes_is_told_so(serve, new_client):
    client = new_client(serve(most_votes=1).place.port)
    client.vote(client.ballot(client.set()))
    status, value, _ = client("POST", "/api/set", {"session": client.session, "holding": []})
    assert status == 403
    assert "at most" in value["error"]
