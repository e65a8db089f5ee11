"""Sets of images: the server issues them, each is answered once by the judge who holds it.

``Desk`` issues and takes answers. All of it happens on the writing thread of the log, one job
after the other, so that no set is answered twice and no two judges race.
"""

import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from http import HTTPStatus

from pydantic import TypeAdapter

from quantarena.leaderboard.arena.catalogue import Catalogue
from quantarena.leaderboard.arena.deal import Dealer, IssuedSet, Placed, Settings
from quantarena.leaderboard.arena.engines.protocols import Engine
from quantarena.leaderboard.arena.events import (
    JudgeKind,
    Mode,
    Shown,
    VoteEvent,
    WithdrawEvent,
    check_answer,
    digest,
    parse,
    stamp,
    taken_back,
)
from quantarena.leaderboard.arena.images import Pictures
from quantarena.leaderboard.arena.log import Clock, Log, insert, newer
from quantarena.leaderboard.arena.memory import Memory

_SET: TypeAdapter[IssuedSet] = TypeAdapter(IssuedSet)
MOST_OUT = 256
"""Latest sets without an answer that the choice of the next one knows of."""
MOST_TOKENS = 100_000
"""Opaque ids of images that the server knows; the oldest are forgotten."""


class Refused(Exception):
    """An answer or a request that is not taken.

    Attributes:
        status: the HTTP status that says why.
    """

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Judge:
    """Who answers.

    Attributes:
        id: salted hash, 16 hex digits.
        session: uuid of a visit.
        kind: as in ``VoteEvent``.
        name: of a program; empty for a person.
    """

    id: str
    session: str
    kind: JudgeKind = "human"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge sends.

    Attributes:
        id: uuid, made by the sender, the same however often it is sent.
        set: the set that it answers.
        mode: as in ``VoteEvent``.
        tiers: positions of the images in tiers, the best first.
        dwell_ms: milliseconds from showing to answering.
    """

    id: str
    set: str
    mode: Mode
    tiers: tuple[tuple[int, ...], ...]
    dwell_ms: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the desk says to an answer that it took.

    Attributes:
        event: the event in the log.
        issued: the set that was answered, names included.
        duplicate: whether the same answer was there already.
        number: answers of this judge so far.
        following: the next set, where it was asked for and there is one.
    """

    event: VoteEvent
    issued: IssuedSet
    duplicate: bool
    number: int
    following: IssuedSet | None = None


class Desk:
    """Issues sets and takes answers."""

    def __init__(
        self,
        log: Log,
        catalogue: Catalogue,
        settings: Settings,
        engine: Engine,
        *,
        pictures: Pictures | None = None,
        clock: Clock = time.time,
        seeds: Callable[[], int] = lambda: secrets.randbits(62),
    ) -> None:
        """Open the desk of a log.

        Args:
            log: where sets and answers are kept.
            catalogue: what can be voted on.
            settings: how it is asked.
            engine: what chooses the sets.
            pictures: reads the image files.
            clock: seconds since 1970.
            seeds: a seed for each set.
        """
        self.log, self.catalogue, self.settings = log, catalogue, settings
        self.pictures = pictures or Pictures()
        self.memory = Memory(settings.task, settings.kinds)
        self._dealer = Dealer(catalogue, settings, engine.matchmaker, self.pictures)
        self._clock, self._seeds = clock, seeds
        self._open: dict[str, OrderedDict[str, IssuedSet]] = {}
        self._out: OrderedDict[str, IssuedSet] = OrderedDict()
        self._tokens: OrderedDict[str, Placed] = OrderedDict()
        self._lost = log.lost
        log.transact(self._recall).result()

    # ---- what others call, from any thread -------------------------------------------------

    def issue(self, judge: Judge, holding: Sequence[str] = ()) -> "Future[IssuedSet]":
        """A set for a judge: one that the judge holds and does not name, or a new one.

        Whoever asks again, as after reloading the page, gets the same set: nobody picks sets.

        Args:
            judge: who will answer.
            holding: ids of the sets that the judge's page shows or has ready.
        """
        return self.log.transact(lambda db: self._issue(db, judge, holding))

    def answer(
        self, judge: Judge, answer: Answer, holding: Sequence[str] | None = None
    ) -> "Future[Receipt]":
        """Take an answer. It is on disk when the future has a result.

        Args:
            judge: who answers.
            answer: what was sent.
            holding: as in ``issue``, to get the next set with the receipt; None for no set.

        Raises (the future):
            Refused: with the status that says why.
        """
        return self.log.transact(lambda db: self._take(db, judge, answer, holding))

    def withdraw(self, judge: Judge, vote: str, name: str) -> "Future[bool]":
        """Take back the latest vote of a judge. It is on disk when the future has a result.

        Args:
            judge: who cast it.
            vote: its id.
            name: uuid of the withdrawal, the same however often it is sent.

        Returns (the future):
            False where the same withdrawal was there already.

        Raises (the future):
            Refused: with the status that says why.
        """
        return self.log.transact(lambda db: self._withdraw(db, judge, vote, name))

    def placed(self, token: str) -> Placed | None:
        """The image behind an opaque id, None where no set that is known shows it."""
        return self._tokens.get(token)

    # ---- on the writing thread ---------------------------------------------------------------

    def _recall(self, db: sqlite3.Connection) -> None:
        """Know what the log and the table of sets know."""
        self._lost = self.log.lost
        self.memory.forget()
        self.memory.catch_up(db)
        self._open.clear()
        self._out.clear()
        rows = db.execute(
            "SELECT body FROM sets WHERE event IS NULL AND expires > ?", (self._clock(),)
        )
        for (body,) in rows.fetchall():
            issued = _SET.validate_json(body)
            # A results folder that moved, or was drawn again, has other files.
            if all(placed.path.is_file() for placed in issued.shown):
                self._remember(issued)

    def _catch_up(self, db: sqlite3.Connection) -> None:
        if self._lost != self.log.lost:
            self._recall(db)
        self.memory.catch_up(db)

    def _remember(self, issued: IssuedSet) -> None:
        if issued.task == self.settings.task:
            self._open.setdefault(issued.judge, OrderedDict())[issued.id] = issued
            self._out[issued.id] = issued
        while len(self._out) > MOST_OUT:
            self._out.popitem(last=False)
        for placed in (*issued.shown, *filter(None, [issued.reference])):
            self._tokens[placed.token] = placed
        while len(self._tokens) > MOST_TOKENS:
            self._tokens.popitem(last=False)

    def _forget(self, issued: IssuedSet) -> None:
        """An answered or expired set is out no more; its images are still served."""
        self._open.get(issued.judge, OrderedDict()).pop(issued.id, None)
        self._out.pop(issued.id, None)

    def _issue(self, db: sqlite3.Connection, judge: Judge, holding: Sequence[str]) -> IssuedSet:
        self._catch_up(db)
        now = self._clock()
        mine = self._open.setdefault(judge.id, OrderedDict())
        for name in [name for name, one in mine.items() if one.expires <= now]:
            self._forget(mine[name])
        for name, issued in mine.items():
            if name not in holding:
                return issued
        if len(mine) >= self.settings.most_open:
            raise Refused(
                HTTPStatus.CONFLICT, f"you hold {len(mine)} sets already: answer or skip one"
            )
        self._room(judge, len(mine))
        others = list(self._out.values())
        issued = self._dealer.deal(self.memory, judge.id, others, seed=self._seeds(), now=now)
        body = _SET.dump_json(issued).decode()
        db.execute(
            "INSERT INTO sets (id, judge, expires, event, body) VALUES (?, ?, ?, NULL, ?)",
            (issued.id, judge.id, issued.expires, body),
        )
        self._remember(issued)
        return issued

    def _take(
        self, db: sqlite3.Connection, judge: Judge, answer: Answer, holding: Sequence[str] | None
    ) -> Receipt:
        receipt = self._answer(db, judge, answer)
        if holding is None:
            return receipt
        try:
            following = self._issue(db, judge, holding)
        except Exception:  # whatever it is, it says itself again when the page asks for a set
            # The answer counts whether or not there is a next set.
            return receipt
        return replace(receipt, following=following)

    def _answer(self, db: sqlite3.Connection, judge: Judge, answer: Answer) -> Receipt:
        self._catch_up(db)
        row = db.execute(
            "SELECT judge, expires, event, body FROM sets WHERE id = ?", (answer.set,)
        ).fetchone()
        if row is None:
            raise Refused(HTTPStatus.NOT_FOUND, "no such set was issued here")
        holder, expires, answered, body = row
        if holder != judge.id:
            raise Refused(HTTPStatus.FORBIDDEN, "the set was issued to another judge")
        issued = self._out.get(answer.set) or _SET.validate_json(body)
        if answered == answer.id:
            return self._again(db, issued, answer)
        if answered is not None:
            raise Refused(HTTPStatus.CONFLICT, "the set is answered already")
        if db.execute("SELECT 1 FROM events WHERE id = ?", (answer.id,)).fetchone():
            raise Refused(HTTPStatus.CONFLICT, "another vote has this id")
        self._room(judge, 0)
        now = self._clock()
        if expires <= now:
            raise Refused(HTTPStatus.GONE, "the set has expired: ask for another")
        try:
            event = self._event(issued, judge, answer, now)
        except ValueError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        insert(db, event)
        db.execute("UPDATE sets SET event = ? WHERE id = ?", (event.id, issued.id))
        self._forget(issued)
        self.memory.catch_up(db)
        return Receipt(event, issued, False, len(self.memory.own[judge.id]))

    def _room(self, judge: Judge, held: int) -> None:
        """Refuse a judge who has cast as many votes as one may, with the sets that are held."""
        most = self.settings.most_votes
        if most and self.memory.cast(judge.id) + held >= most:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"one voter casts {most} votes here at most, and you have: thank you",
            )

    def _withdraw(self, db: sqlite3.Connection, judge: Judge, vote: str, name: str) -> bool:
        self._catch_up(db)
        before = db.execute("SELECT body FROM events WHERE id = ?", (name,)).fetchone()
        if before is not None:
            event = parse(before[0])
            if isinstance(event, WithdrawEvent) and (event.judge, event.vote) == (judge.id, vote):
                return False
            raise Refused(HTTPStatus.CONFLICT, "another event has this id")
        found = db.execute("SELECT body FROM events WHERE id = ?", (vote,)).fetchone()
        cast = parse(found[0]) if found else None
        if not isinstance(cast, VoteEvent):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such vote")
        if cast.judge != judge.id:
            raise Refused(HTTPStatus.FORBIDDEN, "the vote is another judge's")
        latest = db.execute(
            "SELECT event FROM sets JOIN events ON events.id = sets.event"
            " WHERE judge = ? ORDER BY seq DESC LIMIT 1",
            (judge.id,),
        ).fetchone()
        if latest is None or latest[0] != vote:
            raise Refused(HTTPStatus.CONFLICT, "only the latest vote can be taken back")
        if vote in taken_back(one for _, one in newer(db, 0)):
            raise Refused(HTTPStatus.CONFLICT, "the vote was taken back already")
        insert(db, WithdrawEvent(name, stamp(self._clock()), self.log.arena, judge.id, vote))
        self.memory.catch_up(db)
        return True

    def _again(self, db: sqlite3.Connection, issued: IssuedSet, answer: Answer) -> Receipt:
        """The receipt of an answer that was taken before: a reply may be lost on its way."""
        body = db.execute("SELECT body FROM events WHERE id = ?", (answer.id,)).fetchone()[0]
        event = parse(body)
        same = isinstance(event, VoteEvent) and (event.mode, event.tiers) == (
            answer.mode,
            normal(answer.tiers),
        )
        if not same or not isinstance(event, VoteEvent):
            raise Refused(HTTPStatus.CONFLICT, "this vote was answered otherwise")
        return Receipt(event, issued, True, len(self.memory.own[event.judge]))

    def _event(self, issued: IssuedSet, judge: Judge, answer: Answer, now: float) -> VoteEvent:
        check_answer(answer.mode, answer.tiers, len(issued.shown))
        elapsed = max(0, int(1000 * (now - issued.issued)))
        return VoteEvent(
            id=answer.id,
            time=stamp(now),
            arena=self.log.arena,
            judge=judge.id,
            judge_kind=judge.kind,
            judge_name=judge.name,
            session=judge.session,
            task=issued.task,
            board=issued.board,
            unit=issued.unit,
            prompt_sha256=digest(issued.prompt),
            seed=issued.seed,
            image=issued.image,
            set=issued.id,
            purpose=issued.purpose,
            shown=tuple(Shown(p.contestant, p.sha256) for p in issued.shown),
            reference=issued.reference is not None,
            mode=answer.mode,
            tiers=normal(answer.tiers),
            # No longer than the server saw: the page may say anything.
            dwell_ms=min(answer.dwell_ms, elapsed),
            matchmaker=issued.matchmaker,
            page=self.settings.page,
        )


def normal(tiers: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Tiers whose members are in rising order: one text for one answer."""
    return tuple(tuple(sorted(tier)) for tier in tiers)
