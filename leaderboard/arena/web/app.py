"""The arena as a web application: the page, its images, and five calls."""

import asyncio
import json
import uuid
from dataclasses import asdict, dataclass
from hashlib import sha256
from http import HTTPStatus
from math import ceil
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from quantarena.leaderboard.arena.deal import IssuedSet, MissingImage
from quantarena.leaderboard.arena.events import (
    DESTROYED,
    INTACT,
    STRICT,
    BadEvent,
    Count,
    Mode,
    Tiers,
    Token,
    Uuid,
    checked,
)
from quantarena.leaderboard.arena.log import LogError
from quantarena.leaderboard.arena.sets import Answer, Desk, Judge, Receipt, Refused
from quantarena.leaderboard.arena.web.guard import Guard, Place
from quantarena.leaderboard.arena.web.identity import Identities, Pace
from quantarena.leaderboard.arena.web.live import LiveBoards

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
Holding = Annotated[tuple[Token, ...], Field(max_length=8)]
_CHECKS = {INTACT: "full precision, as a check", DESTROYED: "spoilt on purpose, as a check"}


@dataclass(frozen=True, slots=True)
class SetRequest:
    """Asks for a set.

    Attributes:
        session: of the visit.
        holding: sets that the page has.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    session: Uuid
    holding: Holding


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """An answer, and the wish for the next set. Fields as in ``Answer`` and ``SetRequest``."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: Uuid
    set: Token
    mode: Mode
    tiers: Tiers
    dwell_ms: Count
    session: Uuid
    holding: Holding


@dataclass(frozen=True, slots=True)
class WithdrawRequest:
    """Takes a vote back.

    Attributes:
        id: uuid of the withdrawal, made by the page.
        vote: id of the vote.
        session: of the visit.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: Uuid
    vote: Uuid
    session: Uuid


_SET, _VOTE = TypeAdapter(SetRequest), TypeAdapter(VoteRequest)
_WITHDRAW = TypeAdapter(WithdrawRequest)


class Arena:
    """The calls. Each returns when what it promises is on disk."""

    def __init__(
        self, desk: Desk, live: LiveBoards, identities: Identities, *, per_minute: float
    ) -> None:
        self.desk, self.live, self.identities = desk, live, identities
        self._pace = Pace(per_minute)
        self._visits = Pace(max(per_minute, 60.0) * 4)

    async def session(self, request: Request) -> Response:
        """A token for a voter who has none, and a name for this visit."""
        self._turn(self._visits, request.client.host if request.client else "")
        token = _bearer(request)
        if token is None or self.identities.judge(token) is None:
            token = self.identities.fresh()
        settings = self.desk.settings
        titles = self.desk.catalogue.titles
        return JSONResponse(
            {
                "token": token,
                "session": str(uuid.uuid4()),
                "task": settings.task,
                "size": settings.size,
                "reference": settings.reference,
                "boards": [{"key": key, "title": title} for key, title in titles.items()],
            }
        )

    async def set(self, request: Request) -> Response:
        """A set to order."""
        judge = self._judge(request)
        wish = checked(_SET, await request.body())
        self._turn(self._pace, judge)
        issued = await asyncio.wrap_future(
            self.desk.issue(Judge(judge, wish.session), wish.holding)
        )
        return JSONResponse(set_view(issued))

    async def vote(self, request: Request) -> Response:
        """Take an answer; the reply has the names, and the next set where there is one."""
        judge = self._judge(request)
        wish = checked(_VOTE, await request.body())
        self._turn(self._pace, judge)
        who = Judge(judge, wish.session)
        answer = Answer(wish.id, wish.set, wish.mode, wish.tiers, wish.dwell_ms)
        receipt = await asyncio.wrap_future(self.desk.answer(who, answer, wish.holding))
        view = set_view(receipt.following) if receipt.following else None
        return JSONResponse(receipt_view(receipt) | {"next": view})

    async def withdraw(self, request: Request) -> Response:
        """Take back the latest vote."""
        judge = self._judge(request)
        wish = checked(_WITHDRAW, await request.body())
        self._turn(self._pace, judge)
        who = Judge(judge, wish.session)
        fresh = await asyncio.wrap_future(self.desk.withdraw(who, wish.vote, wish.id))
        return JSONResponse({"vote": wish.vote, "duplicate": not fresh})

    async def board(self, request: Request) -> Response:
        """The live board."""
        key = request.query_params.get("board", "")
        if key not in self.desk.catalogue.titles:
            raise HTTPException(HTTPStatus.NOT_FOUND, "no such board")
        found = await self.live.get(key)
        return JSONResponse(
            {
                "board": key,
                "title": self.desk.catalogue.titles[key],
                "votes": found.votes,
                "engine": found.engine,
                "fresh": self.live.fresh(key, found),
                "lines": [asdict(line) for line in found.lines],
            }
        )

    async def image(self, request: Request) -> Response:
        """An image by its opaque id."""
        placed = self.desk.placed(request.path_params["token"])
        if placed is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "no such image")
        try:
            data = await run_in_threadpool(self.desk.pictures.png, placed.path, placed.treatment)
        except (FileNotFoundError, ValueError):
            raise HTTPException(HTTPStatus.NOT_FOUND, "the image cannot be read") from None
        headers = {"cache-control": "private, max-age=86400, immutable"}
        return Response(data, media_type="image/png", headers=headers)

    def _judge(self, request: Request) -> str:
        judge = self.identities.judge(_bearer(request) or "")
        if judge is None:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "ask for a session first")
        return judge

    @staticmethod
    def _turn(pace: Pace, who: str) -> None:
        wait = pace.wait(who)
        if wait:
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too fast: wait a moment",
                {"retry-after": str(ceil(wait))},
            )


def make_app(arena: Arena, place: Place) -> Starlette:
    """The application.

    Args:
        arena: its calls.
        place: where it is reached.
    """
    routes = [
        Route("/api/session", arena.session, methods=["POST"]),
        Route("/api/set", arena.set, methods=["POST"]),
        Route("/api/vote", arena.vote, methods=["POST"]),
        Route("/api/withdraw", arena.withdraw, methods=["POST"]),
        Route("/api/board", arena.board, methods=["GET"]),
        Route("/image/{token:str}", arena.image, methods=["GET"]),
    ]
    for path in sorted(STATIC.iterdir()):
        if path.suffix in TYPES:
            name = "/" if path.name == "index.html" else f"/{path.name}"
            routes.append(Route(name, _file(path), methods=["GET"]))
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, place=place)],
        exception_handlers={
            HTTPException: _http,
            Refused: _refused,
            BadEvent: _malformed,
            LogError: _unavailable,
            MissingImage: _unavailable,
        },
    )


def page_version() -> str:
    """Hash of the files of the page, 12 hex digits; votes carry it."""
    content = sha256()
    for path in sorted(STATIC.iterdir()):
        if path.suffix in TYPES:
            content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:12]


def set_view(issued: IssuedSet) -> dict[str, Any]:
    """What a voter learns of a set: no name, no path, no hash."""
    return {
        "id": issued.id,
        "task": issued.task,
        "prompt": issued.prompt,
        "board": issued.board,
        "images": [f"/image/{placed.token}" for placed in issued.shown],
        "reference": f"/image/{issued.reference.token}" if issued.reference else None,
        "expires": issued.expires,
    }


def receipt_view(receipt: Receipt) -> dict[str, Any]:
    """What a voter learns after the vote."""
    names = [placed.contestant for placed in receipt.issued.shown]
    return {
        "id": receipt.event.id,
        "time": receipt.event.time,
        "duplicate": receipt.duplicate,
        "number": receipt.number,
        "counts": receipt.event.ranked,
        "purpose": receipt.event.purpose,
        "names": [_CHECKS.get(name, name) for name in names],
    }


def _bearer(request: Request) -> str | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token if kind.lower() == "bearer" and token else None


def _file(path: Path) -> Any:
    """A route that serves one file of the page."""
    data = path.read_bytes()
    media = TYPES[path.suffix]

    async def serve(request: Request) -> Response:
        return Response(data, media_type=media, headers={"cache-control": "no-cache"})

    return serve


def _error(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": reason}, status, headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, dict(error.headers or {}))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _error(error.status, str(error))


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadEvent)
    status = HTTPStatus.UNPROCESSABLE_ENTITY if error.is_json else HTTPStatus.BAD_REQUEST
    return _error(status, str(error))


async def _unavailable(request: Request, error: Exception) -> Response:
    # The reason names files of this machine: it goes to the server's own terminal.
    print(f"arena: {json.dumps(str(error))}")
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, "the server cannot do this now")
