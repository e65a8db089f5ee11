"""What every request has to pass: host, origin, size and type; and what every reply carries.

A page of another site must neither vote nor read. ``Host`` is checked against names that no
stranger's DNS can point here, and ``Origin``, which no page can forge, against our own.
"""

import asyncio
import ipaddress
import json
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY = 8 * 1024
"""Largest body of a request, in bytes; an answer has a few hundred."""
BODY_SECONDS = 10.0
"""Time that a body may take to arrive."""
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": CSP,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is reached.

    Attributes:
        host: that it is bound to.
        port: that it is bound to.
        origins: further origins that are ours, such as that of a proxy: ``https://arena.lab``.
    """

    host: str
    port: int
    origins: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """The address for a browser on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else self.host
        host = "::1" if host == "::" else host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def knows(self, netloc: str) -> bool:
        """Whether a ``Host`` header names this server.

        A name that is no address could be a stranger's that points here (DNS rebinding).
        """
        if any(netloc == urlsplit(origin).netloc for origin in self.origins):
            return True
        try:
            parts = urlsplit(f"//{netloc}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.username is not None or parts.path:
            return False
        if name == "localhost" or (name == self.host and name):
            return True
        return _is_address(name) and (is_loopback(name) or not self.local)

    def owns(self, origin: str, netloc: str) -> bool:
        """Whether an ``Origin`` header is that of our own page, reached at ``netloc``."""
        return origin in self.origins or origin == f"http://{netloc}"


class Guard:
    """Refuses what does not come from our own page, and adds the headers that keep it so."""

    def __init__(self, app: ASGIApp, place: Place) -> None:
        self.app, self.place = app, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        fault = self._fault(scope)
        body = b""
        if fault is None and scope["method"] == "POST":
            read = await _body(scope, receive)
            if isinstance(read, HTTPStatus):
                fault = (read, f"a request has at most {MOST_BODY} bytes, and arrives in time")
            else:
                body = read
        if fault is not None:
            await _refuse(sending, *fault)
            return

        given = False

        async def received() -> Message:
            nonlocal given
            if given or scope["method"] != "POST":
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, received, sending)

    def _fault(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        headers = Headers(scope=scope)
        host = headers.getlist("host")
        if len(host) != 1 or not self.place.knows(host[0]):
            return HTTPStatus.MISDIRECTED_REQUEST, "this server has another name"
        if scope["method"] in ("GET", "HEAD"):
            # A link elsewhere may lead to the page; nothing else may be used from elsewhere.
            site = headers.get("sec-fetch-site", "none")
            if scope["path"] != "/" and site not in ("same-origin", "none"):
                return HTTPStatus.FORBIDDEN, "not for other sites"
            return None
        if scope["method"] != "POST":
            return HTTPStatus.METHOD_NOT_ALLOWED, "GET and POST only"
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return HTTPStatus.FORBIDDEN, "not from other sites"
        origins = headers.getlist("origin")
        if len(origins) != 1 or not self.place.owns(origins[0], host[0]):
            return HTTPStatus.FORBIDDEN, "not from other sites: Origin must be the page's own"
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json"
        return None


async def _body(scope: Scope, receive: Receive) -> bytes | HTTPStatus:
    """The body of a request, or the status that refuses it."""
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isdecimal():
        return HTTPStatus.BAD_REQUEST
    if int(length[:12]) > MOST_BODY:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MOST_BODY:
                    return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        return HTTPStatus.REQUEST_TIMEOUT


async def _refuse(send: Send, status: HTTPStatus, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # What is left of the body is not read.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host name or address."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
