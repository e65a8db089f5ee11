"""A real server in a thread of this process, and a client that sends what a page sends."""

import http.client
import json
import threading
import time
import uuid

import pytest

pytest.importorskip("starlette", reason="the extra arena is not installed")

from quantarena.leaderboard.arena.catalogue import read_catalogue
from quantarena.leaderboard.arena.deal import Settings
from quantarena.leaderboard.arena.engines.ksort import KSortMatchmaker, KSortStandings
from quantarena.leaderboard.arena.engines.protocols import Engine
from quantarena.leaderboard.arena.web.app import page_version
from quantarena.leaderboard.arena.web.server import Address, opened_arena


class Client:
    def __init__(self, port, token=None):
        self.port, self.netloc = port, f"127.0.0.1:{port}"
        status, value, _ = self("POST", "/api/session", {})
        assert status == 200
        self.token, self.session = token or value["token"], value["session"]
        self.visit = value

    token = None

    def __call__(self, method, path, body=None, headers=(), *, raw=None):
        """Returns status, value (parsed if JSON) and headers; a header of None is not sent."""
        sent = {"host": self.netloc, "origin": f"http://{self.netloc}"}
        sent |= {"content-type": "application/json", "authorization": f"Bearer {self.token}"}
        sent |= dict(headers)
        data = raw if raw is not None else (b"" if body is None else json.dumps(body).encode())
        sent.setdefault("content-length", str(len(data)))
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                for one in value if isinstance(value, list) else [value]:
                    if one is not None:
                        connection.putheader(name, one)
            connection.endheaders(data)
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        is_json = reply.headers.get_content_type() == "application/json"
        return reply.status, json.loads(text) if is_json else text, reply.headers

    def set(self, holding=()):
        status, value, _ = self(
            "POST", "/api/set", {"session": self.session, "holding": list(holding)}
        )
        assert status == 200, value
        return value

    def ballot(self, issued, **changes):
        body = {
            "id": str(uuid.uuid4()),
            "set": issued["id"],
            "mode": "rank",
            "tiers": [[n] for n in range(len(issued["images"]))],
            "dwell_ms": 2500,
            "session": self.session,
            "holding": [],
        }
        return body | changes

    def vote(self, body, **options):
        return self("POST", "/api/vote", body, **options)


@pytest.fixture
def serve(results, tmp_path):
    """Starts servers; each is ended after the test. Settings as keywords."""
    running = []

    def start(
        folder=None, *, log=tmp_path / "votes.sqlite", per_minute=60_000, address=None, **given
    ):
        settings = Settings(**{"gold": 0.0, "repeats": 0.0, "page": page_version(), **given})
        catalogue = read_catalogue(
            folder or results[0], task=settings.task, reference=settings.reference
        )
        engine = Engine(KSortMatchmaker(), KSortStandings(resamples=30))
        opened = opened_arena(
            catalogue, log, settings, engine, address or Address(), per_minute=per_minute
        )
        serving = opened.__enter__()
        thread = threading.Thread(target=serving.run, daemon=True)
        thread.start()
        running.append((serving, thread, opened))
        return serving

    yield start
    for serving, thread, opened in running:
        serving.server.should_exit = True
        thread.join(20)
        opened.__exit__(None, None, None)


@pytest.fixture
def serving(serve):
    return serve()


@pytest.fixture
def client(serving):
    return Client(serving.place.port)


@pytest.fixture
def new_client():
    return Client


# ---- a browser ---------------------------------------------------------------------------------

LOADED = "performance.getEntriesByType('resource').filter(e => e.name.includes('/image/')).length"


class Page:
    """A page of Playwright's, with what these tests ask of it. Everything else is the page's."""

    def __init__(self, page):
        self.page, self.complaints, self.requests = page, [], []
        page.on("console", lambda line: self.complaints.append(line.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def __getattr__(self, name):
        return getattr(self.page, name)

    def keys(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def eventually(self, expression, argument=None):
        """Wait until a script says true; Playwright's own wait needs what the policy forbids."""
        end = time.monotonic() + 15
        while not self.page.evaluate(expression, argument):
            assert time.monotonic() < end, f"never true: {expression}"
            self.page.wait_for_timeout(50)

    def has_loaded(self, images):
        self.eventually(f"{LOADED} >= {images}")

    def says(self, text):
        script = "text => document.getElementById('status').textContent.includes(text)"
        self.eventually(script, text)

    def order(self):
        return [tier.inner_text().split() for tier in self.page.locator("#tiers .tier").all()]

    def focused(self):
        return self.page.evaluate("document.activeElement.getAttribute('aria-label')")


@pytest.fixture
def visit(browser, serving):
    """Opens the page with a set on it. Nothing may complain, and nothing leaves the server."""
    contexts = []

    def opened(width=1280, height=900, server=serving, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        page = Page(context.new_page())
        page.goto(server.place.url)
        page.locator("#images .card").nth(1).wait_for()
        page.eventually("document.getElementById('board').tBodies[0].rows.length > 0")
        contexts.append((context, page, server))
        return page

    yield opened
    for context, page, server in contexts:
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith(server.place.url)] == []
        context.close()
