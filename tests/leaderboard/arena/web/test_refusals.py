"""What is forged, replayed, expired, oversized, malformed or from another site is refused."""

import socket
import uuid

import pytest

from quantarena.leaderboard.arena.web import guard
from quantarena.leaderboard.arena.web.guard import MOST_BODY, Place
from quantarena.leaderboard.arena.web.identity import Identities, Pace
from quantarena.leaderboard.arena.web.server import Address, CannotListen, listen


@pytest.fixture
def ballot(client):
    return client.ballot(client.set())


@pytest.fixture
def unharmed(client, serving, ballot):
    """After the test: nothing was stored, and the honest vote still counts."""
    yield
    assert serving.log.events() == []
    assert client.vote(ballot)[0] == 200


# ---- who ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer x", "Bearer " + "0" * 96, "Basic abc", "Bearer " + "é" * 40],
)
def test_without_a_token_of_ours(client, ballot, unharmed, authorization):
    headers = {"authorization": authorization and authorization.encode("latin-1")}
    assert client.vote(ballot, headers=headers)[0] == 401
    status, _, _ = client(
        "POST", "/api/set", {"session": ballot["session"], "holding": []}, headers
    )
    assert status == 401


def test_a_token_with_another_name_in_it(client, ballot, unharmed):
    forged = client.token[:-1] + ("0" if client.token[-1] != "0" else "1")
    other = ("f" if client.token[0] != "f" else "e") + client.token[1:]
    for token in (forged, other):
        assert client.vote(ballot, headers={"authorization": f"Bearer {token}"})[0] == 401


def test_the_set_of_another_judge(client, serving, new_client, ballot, unharmed):
    thief = new_client(serving.place.port)
    assert thief.vote(ballot | {"session": thief.session})[0] == 403


def test_a_set_that_was_never_issued(client, ballot, unharmed):
    assert client.vote(ballot | {"set": "f" * 32})[0] == 404


# ---- once, and in time -------------------------------------------------------------------------


def test_a_replayed_vote(client, serving, ballot):
    assert client.vote(ballot)[0] == 200
    assert client.vote(ballot | {"id": str(uuid.uuid4())})[0] == 409
    assert client.vote(ballot | {"tiers": [[3], [2], [1], [0]]})[0] == 409
    following = client.set()
    assert client.vote(ballot | {"set": following["id"]})[0] == 409
    assert len(serving.log.events()) == 1


def test_an_expired_set(serve, new_client):
    serving = serve(expires=0.0)
    client = new_client(serving.place.port)
    assert client.vote(client.ballot(client.set()))[0] == 410
    assert serving.log.events() == []


def test_more_sets_than_anybody_may_hold(client):
    first = client.set()
    second = client.set([first["id"]])
    body = {"session": client.session, "holding": [first["id"], second["id"]]}
    assert client("POST", "/api/set", body)[0] == 409


def test_too_fast(serve, new_client):
    serving = serve(per_minute=8)
    client = new_client(serving.place.port)
    statuses, waits = [], []
    for _ in range(5):
        body = {"session": client.session, "holding": []}
        status, _, headers = client("POST", "/api/set", body)
        statuses.append(status)
        waits.append(headers["retry-after"])
    assert statuses == [200, 200, 429, 429, 429]
    assert 1 <= int(waits[-1]) <= 8


# ---- size and form -----------------------------------------------------------------------------


def test_an_oversized_body(client, ballot, unharmed):
    raw = b" " * (MOST_BODY + 1)
    assert client.vote(None, raw=raw)[0] == 413
    # The length is believed before anything is read, and counted where none is given.
    assert client.vote(None, raw=b"", headers={"content-length": "99999999999999999999"})[0] in (
        400,
        413,
    )
    chunk = b"%x\r\n%s\r\n" % (MOST_BODY + 1, raw)
    status = client.vote(
        None,
        raw=chunk + b"0\r\n\r\n",
        headers={"content-length": None, "transfer-encoding": "chunked"},
    )[0]
    assert status == 413


def test_a_body_that_does_not_come(client, ballot, unharmed, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    assert client.vote(None, raw=b"{", headers={"content-length": "20"})[0] == 408


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe{}", b"[" * 4000, b'{"id": "\\ud800"}', b"id=1"]
)
def test_what_is_no_json(client, ballot, unharmed, raw):
    assert client.vote(None, raw=raw)[0] == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "1"},
        {"id": None},
        {"set": "../../etc/passwd"},
        {"mode": "love"},
        {"tiers": [[0], [1], [2]]},
        {"tiers": [[0], [1], [2], [3], [4]]},
        {"tiers": [[0, 0], [1, 2, 3]]},
        {"tiers": [["0"], [1], [2], [3]]},
        {"tiers": [[0.0], [1], [2], [3]]},
        {"tiers": "0123"},
        {"tiers": [[-1], [1], [2], [3]]},
        {"tiers": [[]]},
        {"mode": "skip"},
        {"mode": "bad"},
        {"dwell_ms": -1},
        {"dwell_ms": 10**30},
        {"dwell_ms": True},
        {"session": "me"},
        {"holding": ["x"]},
        {"holding": ["f" * 32] * 9},
        {"judge": "a" * 16},
        {"purpose": "rank"},
    ],
)
def test_json_that_is_no_vote(client, ballot, unharmed, changes):
    status, value, _ = client.vote(ballot | changes)
    assert status == 422
    assert len(value["error"]) < 200


def test_a_missing_field(client, ballot, unharmed):
    for name in ballot:
        assert client.vote({key: value for key, value in ballot.items() if key != name})[0] == 422


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "a"])
def test_another_content_type(client, ballot, unharmed, kind):
    assert client.vote(ballot, headers={"content-type": kind})[0] == 415


# ---- where from --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "http://evil.example",
        "https://127.0.0.1",
        "http://127.0.0.1:1",
        "http://127.0.0.1.evil.example",
        ["http://evil.example", "http://127.0.0.1"],
    ],
)
def test_another_origin(client, ballot, unharmed, origin):
    assert client.vote(ballot, headers={"origin": origin})[0] == 403


def test_what_a_browser_says_is_cross_site(client, ballot, unharmed):
    for site in ("cross-site", "same-site", "none"):
        assert client.vote(ballot, headers={"sec-fetch-site": site})[0] == 403
    for path in ("/api/board", client.set()["images"][0], "/app.js"):
        assert client("GET", path, headers={"sec-fetch-site": "cross-site"})[0] == 403
    # A link from elsewhere to the page itself is what links are for.
    assert client("GET", "/", headers={"sec-fetch-site": "cross-site"})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1:1", "127.0.0.1", "x@127.0.0.1:{port}",
     "127.0.0.1:{port}/x", "10.0.0.1:{port}", "[::1", "", None],
)  # fmt: skip
def test_another_host(client, ballot, unharmed, host):
    """A stranger's name that points here: DNS rebinding."""
    host = host and host.format(port=client.port)
    headers = {"host": host, "origin": f"http://{host}"}
    assert client.vote(ballot, headers=headers)[0] in (400, 421)
    assert client("GET", "/", headers=headers)[0] in (400, 421)


def test_our_own_names(client):
    for host in (f"127.0.0.1:{client.port}", f"localhost:{client.port}", f"[::1]:{client.port}"):
        headers = {"host": host, "origin": f"http://{host}"}
        assert client("POST", "/api/session", {}, headers=headers)[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_another_method(client, ballot, unharmed, method):
    status, _, headers = client(method, "/api/vote", ballot)
    assert status == 405
    assert "access-control-allow-origin" not in headers
    assert client("GET", "/api/vote")[0] == 405


def test_images_by_guess(client):
    for token in ("0" * 32, "..%2f..%2fetc%2fpasswd", "%00", "x" * 5000):
        assert client("GET", f"/image/{token}")[0] == 404


def test_refusals_have_the_headers_too(client):
    for path, headers in (("/none", {}), ("/", {"host": "evil.example"})):
        found = client("GET", path, headers=headers)[2]
        assert "default-src 'none'" in found["content-security-policy"]


def test_bytes_that_are_no_http(serving):
    with socket.create_connection(("127.0.0.1", serving.place.port), timeout=10) as wire:
        wire.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert wire.recv(64).startswith(b"HTTP/1.1 400")


# ---- the parts ---------------------------------------------------------------------------------


def test_who_may_reach_a_server_that_is_open_to_the_network():
    place = Place("0.0.0.0", 8420, ("https://arena.lab",))
    assert not place.local
    for host in (
        "192.168.1.7:8420",
        "127.0.0.1:8420",
        "[fe80::1]:8420",
        "localhost:8420",
        "arena.lab",
    ):
        assert place.knows(host)
    for host in ("my-phone.lan:8420", "192.168.1.7", "arena.lab:8420", "evil.example"):
        assert not place.knows(host)
    assert place.owns("https://arena.lab", "arena.lab")
    assert not place.owns("http://arena.lab:8420", "192.168.1.7:8420")
    assert Place("lab7", 80).knows("lab7")
    assert place.url == "http://127.0.0.1:8420/"
    assert Place("::1", 5).url == "http://[::1]:5/"


def test_tokens_are_of_one_arena():
    ours, theirs = Identities("secret", "salt"), Identities("other", "salt")
    token = ours.fresh()
    assert len(ours.judge(token)) == 16
    assert theirs.judge(token) is None
    assert Identities("secret", "pepper").judge(token) != ours.judge(token)


def test_a_bucket_fills_steadily():
    now = [0.0]
    pace = Pace(60, lambda: now[0])
    assert [pace.wait("a") for _ in range(15)] == [0.0] * 15
    assert pace.wait("a") == pytest.approx(1.0)
    assert pace.wait("b") == 0.0
    now[0] = 2.0
    assert [pace.wait("a") for _ in range(3)] == [0.0, 0.0, pytest.approx(1.0)]


def test_an_address_that_cannot_be_bound_is_one_line():
    with listen(Address()) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match="--port 0"):
            listen(Address(port=port))
    with pytest.raises(CannotListen, match="no-such"):
        listen(Address("no-such-host.invalid"))
