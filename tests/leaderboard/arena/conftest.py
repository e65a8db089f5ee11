"""An arena on the synthetic results folder: a desk, and events made up here."""

import itertools
import random
import uuid

import pytest

from quantarena.leaderboard.arena import events as ev
from quantarena.leaderboard.arena.catalogue import read_catalogue
from quantarena.leaderboard.arena.deal import Settings
from quantarena.leaderboard.arena.engines.named import engine as named_engine
from quantarena.leaderboard.arena.log import Log
from quantarena.leaderboard.arena.sets import Answer, Desk, Judge

NUMBERS = itertools.count()


def event(tiers=((1,), (0,)), *, names=None, **changes):
    """A vote on made-up contestants; ``changes`` overrides any field."""
    tiers = tuple(tuple(tier) for tier in tiers)
    size = sum(map(len, tiers)) or 2
    names = names or [f"m{n}@w4a4" for n in range(size)]
    n = next(NUMBERS)
    fields = {
        "id": str(uuid.UUID(int=random.Random(n).getrandbits(128), version=4)),
        "time": ev.stamp(1.8e9 + n),
        "arena": "a" * 16,
        "judge": "b" * 16,
        "judge_kind": "human",
        "judge_name": "",
        "session": str(uuid.UUID(int=7, version=4)),
        "task": "fidelity",
        "board": "emoji/uniform/paper/123456",
        "unit": f"p{n % 12:04d}",
        "prompt_sha256": ev.digest("a cat"),
        "seed": 0,
        "image": n % 12,
        "set": f"{n:032x}",
        "purpose": "rank",
        "shown": tuple(ev.Shown(name, ev.digest(name)) for name in names),
        "reference": True,
        "mode": "rank",
        "tiers": tiers,
        "dwell_ms": 4000,
        "matchmaker": ev.Matched("ksort-1", 3, "0" * 16),
        "page": "test",
    }
    return ev.VoteEvent(**(fields | changes))


@pytest.fixture
def make_event():
    return event


@pytest.fixture
def make_void():
    def void(vote):
        n = next(NUMBERS)
        return ev.VoidEvent(
            str(uuid.UUID(int=n, version=4)), ev.stamp(1.8e9 + n), "a" * 16, vote.id, "a slip"
        )

    return void


class Clock:
    def __init__(self):
        self.now = 1.8e9

    def __call__(self):
        self.now += 0.001
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(tmp_path):
    with Log(tmp_path / "votes.sqlite") as opened:
        yield opened


@pytest.fixture
def open_desk(results, log, clock):
    """Opens a desk; settings as keywords. Sets are dealt from rising seeds."""

    def opened(folder=None, engine=None, log=log, **settings):
        settings = {"gold": 0.0, "repeats": 0.0, **settings}
        made = Settings(**settings)
        catalogue = read_catalogue(folder or results[0], task=made.task, reference=made.reference)
        seeds = itertools.count(1)
        return Desk(
            log,
            catalogue,
            made,
            engine or named_engine(),
            clock=clock,
            seeds=lambda: next(seeds),
        )

    return opened


@pytest.fixture
def ann():
    return Judge("a" * 16, str(uuid.UUID(int=1, version=4)))


@pytest.fixture
def bob():
    return Judge("b" * 16, str(uuid.UUID(int=2, version=4)))


@pytest.fixture
def make_answer():
    def answer(issued, tiers=None, *, mode="rank", id=None, dwell_ms=3000):
        size = len(issued.shown)
        tiers = tuple((n,) for n in range(size)) if tiers is None else tiers
        return Answer(id or str(uuid.uuid4()), issued.id, mode, tiers, dwell_ms)

    return answer
