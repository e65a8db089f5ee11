"""Starts the arena of a results folder and serves it until it is stopped."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from quantarena.leaderboard.arena.catalogue import Catalogue
from quantarena.leaderboard.arena.deal import Settings
from quantarena.leaderboard.arena.engines.protocols import Engine
from quantarena.leaderboard.arena.log import Log
from quantarena.leaderboard.arena.sets import Desk
from quantarena.leaderboard.arena.web.app import Arena, make_app
from quantarena.leaderboard.arena.web.guard import Place
from quantarena.leaderboard.arena.web.identity import Identities
from quantarena.leaderboard.arena.web.live import LiveBoards


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen.

    Attributes:
        host: name or address.
        port: 0 takes any free one.
        origins: further origins of the page, such as that of a proxy.
    """

    host: str = "127.0.0.1"
    port: int = 0
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Serving:
    """An arena whose address is bound, and that serves once it is run.

    Attributes:
        place: where it is reached.
        log: where its votes go.
        desk: issues sets and takes answers.
        server: the HTTP server.
        listener: the bound socket.
    """

    place: Place
    log: Log
    desk: Desk
    server: uvicorn.Server
    listener: socket.socket

    def run(self) -> None:
        """Serve until the process is told to stop, or ``server.should_exit`` is set."""
        self.server.run(sockets=[self.listener])


@contextlib.contextmanager
def opened_arena(
    catalogue: Catalogue,
    log_path: Path,
    settings: Settings,
    engine: Engine,
    address: Address,
    *,
    per_minute: float,
) -> Iterator[Serving]:
    """An arena, closed after the block.

    Args:
        catalogue: what can be voted on.
        log_path: the log.
        settings: how it is asked.
        engine: what chooses sets and ranks.
        address: where to listen.
        per_minute: answers a minute of one judge.

    Raises:
        LogError: the log cannot be opened.
        CannotListen: the address cannot be bound.
    """
    listener = listen(address)
    with listener, Log(log_path) as log:
        place = Place(address.host, listener.getsockname()[1], address.origins)
        desk = Desk(log, catalogue, settings, engine)
        live = LiveBoards(desk.memory, engine.standings, catalogue.contestants)
        identities = Identities(log.meta("secret"), log.meta("salt"))
        arena = Arena(desk, live, identities, per_minute=per_minute)
        config = uvicorn.Config(
            make_app(arena, place),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            timeout_keep_alive=30,
            limit_concurrency=1000,
            h11_max_incomplete_event_size=16 * 1024,
            timeout_graceful_shutdown=3,
        )
        yield Serving(place, log, desk, uvicorn.Server(config), listener)


class CannotListen(ValueError):
    """An address that cannot be bound; one line says why."""


def listen(address: Address) -> socket.socket:
    """A bound socket.

    Raises:
        CannotListen: the name is unknown, or the port is taken.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(f"cannot listen on {address.host}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"cannot listen on {address.host} port {address.port}: {error.strerror}; "
            "--port 0 takes a free one"
        ) from None
    return listener
