"""The board beside the vote: computed in the background, and never more often than it is worth."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from quantarena.leaderboard.arena.engines.protocols import BoardLine, Standings
from quantarena.leaderboard.arena.memory import START, Memory

PATIENCE = 0.4
"""Seconds that a reader waits for a board to be computed again, before the last one is sent."""
LEAST_SECONDS = 1.0
"""Shortest time between two computations of a board."""
SHARE = 8.0
"""A board that took a second is left alone for this many: votes come first."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A computed board.

    Attributes:
        lines: the best first.
        votes: number of votes behind them.
        engine: name of the standings.
        basis: hash of those votes.
        again: time of the monotonic clock before which it is not computed again.
    """

    lines: tuple[BoardLine, ...]
    votes: int
    engine: str
    basis: str
    again: float


class LiveBoards:
    """Boards by key, as fresh as their cost allows."""

    def __init__(
        self, memory: Memory, standings: Standings, contestants: Mapping[str, tuple[str, ...]]
    ) -> None:
        self._memory, self._standings, self._contestants = memory, standings, contestants
        self._seen: dict[str, Seen] = {}
        self._running: dict[str, asyncio.Task[Seen]] = {}

    async def get(self, key: str) -> Seen:
        """A board: the present one where that is quickly computed, otherwise the last one."""
        seen = self._seen.get(key)
        basis = self._memory.basis.get(key, START)
        stale = seen is None or (seen.basis != basis and time.monotonic() >= seen.again)
        if stale and key not in self._running:
            task = self._running[key] = asyncio.create_task(self._compute(key, basis))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        running = self._running.get(key)
        if running is not None:
            await asyncio.wait([running], timeout=None if seen is None else PATIENCE)
            if running.done():
                return running.result()
        assert seen is not None, "the first reader waits without a limit"
        return seen

    def fresh(self, key: str, seen: Seen) -> bool:
        """Whether a board has every vote that is in the log."""
        return seen.basis == self._memory.basis.get(key, START)

    async def _compute(self, key: str, basis: str) -> Seen:
        began = time.monotonic()
        votes = list(self._memory.votes.get(key, ()))
        known = {name for vote in votes for name in vote.contestants}
        names = sorted(known | set(self._contestants.get(key, ())))
        lines = await run_in_threadpool(self._standings.board, votes, names)
        ended = time.monotonic()
        again = ended + max(LEAST_SECONDS, SHARE * (ended - began))
        seen = self._seen[key] = Seen(lines, len(votes), self._standings.name, basis, again)
        return seen
