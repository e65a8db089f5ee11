"""What a server knows from its log: derived from events only, and made again whenever in doubt."""

import hashlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from quantarena.leaderboard.arena.events import Event, VoteEvent, WithdrawEvent, standing_votes
from quantarena.leaderboard.arena.log import newer
from quantarena.leaderboard.ranking.votes import Vote

START = "0" * 16
"""The basis of a board without votes."""


class Memory:
    """Votes by board, and what each judge has seen.

    Attributes:
        votes: the votes that count, by key of the board, in the order of the log.
        basis: hash of the ids of those votes, by key of the board.
        looks: number of answers by scene.
        board_looks: number of answers by board.
        seen: scenes that a judge has answered, by judge.
        asked: what a judge has been asked to compare, as ``content_of``, by judge.
        own: ranked votes of each judge, in the order of the log.
        repeated: by judge, ids of the sets that were asked a second time already.
        withdrawn: number of votes that a judge took back, by judge.
        revision: grows with every event.
    """

    def __init__(self, task: str, kinds: frozenset[str]) -> None:
        """Know nothing yet.

        Args:
            task: votes of this task count.
            kinds: votes of judges of these kinds count.
        """
        self._task, self._kinds = task, kinds
        self._clear()

    def _clear(self) -> None:
        self.votes: defaultdict[str, list[Vote]] = defaultdict(list)
        self.basis: dict[str, str] = {}
        self.looks: Counter[str] = Counter()
        self.board_looks: Counter[str] = Counter()
        self.seen: defaultdict[str, set[str]] = defaultdict(set)
        self.asked: defaultdict[str, set[str]] = defaultdict(set)
        self.own: defaultdict[str, list[VoteEvent]] = defaultdict(list)
        self.repeated: defaultdict[str, set[str]] = defaultdict(set)
        self.withdrawn: Counter[str] = Counter()
        self.revision = 0

    def forget(self) -> None:
        """Start again from an empty log."""
        self._clear()

    def catch_up(self, db: sqlite3.Connection) -> None:
        """Read the events that came since the last time, of other processes too."""
        fresh = newer(db, self.revision)
        if not fresh:
            return
        if any(not isinstance(event, VoteEvent) for _, event in fresh):
            everything = newer(db, 0)
            self._clear()
            self._learn(standing_votes(event for _, event in everything))
            back = (event for _, event in everything if isinstance(event, WithdrawEvent))
            self.withdrawn.update(event.judge for event in back)
            self.revision = everything[-1][0]
        else:
            self._learn(event for _, event in fresh)
            self.revision = fresh[-1][0]

    def cast(self, judge: str) -> int:
        """Ranked votes that a judge has cast, those taken back too."""
        return len(self.own[judge]) + self.withdrawn[judge]

    def _learn(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, VoteEvent) and event.task == self._task:
                self._learn_vote(event)

    def _learn_vote(self, event: VoteEvent) -> None:
        scene = scene_key(event)
        self.seen[event.judge].add(scene)
        self.asked[event.judge].add(content_of(event))
        self.looks[scene] += 1
        self.board_looks[event.board] += 1
        if event.purpose == "repeat":
            self.repeated[event.judge].add(content_of(event))
        if not event.ranked:
            return
        self.own[event.judge].append(event)
        if event.judge_kind in self._kinds:
            before = self.basis.get(event.board, START)
            self.basis[event.board] = hashlib.sha256(f"{before}{event.id}".encode()).hexdigest()[
                :16
            ]
            self.votes[event.board].append(event.vote())


def scene_key(event: VoteEvent) -> str:
    """The ``Scene.key`` of the images of a vote."""
    return f"{event.board}|{event.seed}|{event.image}"


def content_of(event: VoteEvent) -> str:
    """What a set compares, whatever the order shown: the scene and the contestants."""
    return content(scene_key(event), [shown.contestant for shown in event.shown])


def content(scene: str, names: Iterable[str]) -> str:
    """See ``content_of``."""
    return "|".join([scene, *sorted(names)])


def by_board(votes: Iterable[VoteEvent]) -> Mapping[tuple[str, str], list[VoteEvent]]:
    """Votes by board and task, in the order of the boards."""
    found: dict[tuple[str, str], list[VoteEvent]] = {}
    for vote in votes:
        found.setdefault((vote.board, vote.task), []).append(vote)
    return dict(sorted(found.items()))
