import asyncio
import time

import pytest

from quantarena.leaderboard.arena.engines.protocols import BoardLine
from quantarena.leaderboard.arena.memory import Memory
from quantarena.leaderboard.arena.web import live
from quantarena.leaderboard.arena.web.live import LiveBoards


class Slow:
    """Standings that take a while, and count how often they are asked."""

    name = "slow-1"

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def board(self, votes, contestants):
        self.asked.append((len(votes), tuple(contestants)))
        time.sleep(self.seconds)
        return tuple(BoardLine(name, 1, 25.0, 0.0, 50.0, 1, 1, 0) for name in contestants)


@pytest.fixture
def memory(make_event):
    memory = Memory("fidelity", frozenset({"human"}))

    def learn(count):
        for _ in range(count):
            memory._learn_vote(make_event(board="b"))

    memory.learn = learn
    return memory


def test_readers_share_one_computation(memory):
    slow = Slow(0.1)
    boards = LiveBoards(memory, slow, {"b": ("x",)})

    async def crowd():
        return await asyncio.gather(*(boards.get("b") for _ in range(20)))

    found = asyncio.run(crowd())
    assert len(slow.asked) == 1
    assert {seen.votes for seen in found} == {0}


def test_a_slow_board_is_sent_as_it_was_and_renewed_behind(memory, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE", 0.05)
    monkeypatch.setattr(live, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(live, "SHARE", 0.0)
    slow = Slow(0.3)
    boards = LiveBoards(memory, slow, {"b": ("x",)})

    async def watch():
        first = await boards.get("b")
        assert boards.fresh("b", first)
        memory.learn(3)
        began = time.monotonic()
        second = await boards.get("b")
        assert time.monotonic() - began < 0.25
        assert second is first
        assert not boards.fresh("b", second)
        await asyncio.sleep(0.5)
        return await boards.get("b")

    third = asyncio.run(watch())
    assert third.votes == 3
    # Contestants of imported votes are there too, whatever the folder has.
    assert slow.asked[-1] == (3, ("m0@w4a4", "m1@w4a4", "x"))


def test_a_costly_board_is_left_alone_for_a_while(memory):
    slow = Slow(0.05)
    boards = LiveBoards(memory, slow, {"b": ("x",)})

    async def watch():
        await boards.get("b")
        for _ in range(5):
            memory.learn(1)
            await boards.get("b")

    asyncio.run(watch())
    assert len(slow.asked) == 1


def test_a_board_without_news_is_not_computed_again(memory, monkeypatch):
    monkeypatch.setattr(live, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(live, "SHARE", 0.0)
    slow = Slow(0.0)
    boards = LiveBoards(memory, slow, {"b": ("x",)})

    async def watch():
        for _ in range(5):
            await boards.get("b")

    asyncio.run(watch())
    assert len(slow.asked) == 1


def test_an_engine_that_fails_is_asked_again(memory):
    slow = Slow(0.0)
    slow.board = lambda votes, contestants: 1 / 0
    boards = LiveBoards(memory, slow, {"b": ("x",)})

    async def watch():
        with pytest.raises(ZeroDivisionError):
            await boards.get("b")
        del slow.board
        return await boards.get("b")

    assert asyncio.run(watch()).votes == 0
