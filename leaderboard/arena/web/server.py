"""Starts the arena of a results folder and serves it until it is stopped."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from quantarena.leaderboard.arena.catalogue import Catalogue
from quantarena.leaderboard.arena.deal import Settings
from quantarena.leaderboard.arena.engines import Engine
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


def serve(
    catalogue: Catalogue,
    log_path: Path,
    settings: Settings,
    engine: Engine,
    address: Address,
    *,
    per_minute: float,
    started: Callable[[Place, Log], None],
) -> None:
    """Serve an arena until the process is told to stop.

    Args:
        catalogue: what can be voted on.
        log_path: the log.
        settings: how it is asked.
        engine: what chooses sets and ranks.
        address: where to listen.
        per_minute: answers a minute of one judge.
        started: called once the address is bound, before the first request.

    Raises:
        LogError: the log cannot be opened.
        OSError: the address cannot be bound.
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
        started(place, log)
        uvicorn.Server(config).run(sockets=[listener])


def listen(address: Address) -> socket.socket:
    """A bound socket.

    Raises:
        OSError: the name is unknown, or the port is taken.
    """
    family, kind, protocol, _, where = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener
