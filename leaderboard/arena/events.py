"""What the log of an arena holds: votes, and what takes votes back. Frozen, never edited.

An event is one JSON object (one line of a JSONL file). ``schema`` describes it to other programs,
``parse`` checks one strictly, and ``line`` writes the one text that an event has.
"""

import datetime
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from quantarena.leaderboard.ranking.votes import Vote

T = TypeVar("T")
MOST_SHOWN = 8
"""Largest number of images in a set: one for each of the keys 1 to 8."""
MOST_BYTES = 32 * 1024
"""Largest size of one event as JSON."""
INTACT, DESTROYED = "gold:intact", "gold:destroyed"
"""Contestants of a check: full precision's image, and the same image spoilt beyond doubt."""

Task = Literal["fidelity", "preference"]
Purpose = Literal["rank", "repeat", "gold-order", "gold-tie"]
Mode = Literal["rank", "best", "bad", "skip"]
JudgeKind = Literal["human", "automatic", "vlm"]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Short = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Token = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
# No control characters: they would move the cursor of a terminal, or turn the direction of text.
_PLAIN = r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
Name = Annotated[str, Field(pattern=f"^{_PLAIN}+$", max_length=300)]
Text = Annotated[str, Field(pattern=f"^{_PLAIN}*$", max_length=500)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Time = Annotated[str, Field(pattern=r"^20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d\.\d{3}Z$")]
Position = Annotated[int, Field(ge=0, lt=MOST_SHOWN)]
Tiers = Annotated[
    tuple[Annotated[tuple[Position, ...], Field(min_length=1, max_length=MOST_SHOWN)], ...],
    Field(max_length=MOST_SHOWN),
]
STRICT = ConfigDict(extra="forbid", strict=True)


class BadEvent(ValueError):
    """A text that is no event; one line says why.

    Attributes:
        is_json: whether the text is JSON at all.
    """

    def __init__(self, line: str, *, is_json: bool = True) -> None:
        super().__init__(line)
        self.is_json = is_json


@dataclass(frozen=True, slots=True)
class Shown:
    """One image of a set.

    Attributes:
        contestant: ``method@bits``, ``gold:intact`` or ``gold:destroyed``.
        sha256: of the image file in the results folder.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    contestant: Name
    sha256: Hash


@dataclass(frozen=True, slots=True)
class Matched:
    """What chose a set: the choice can be made again from the log.

    Attributes:
        name: of the matchmaker.
        seed: that it was given.
        basis: hash of the ids of the votes that it knew, in their order.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    seed: Count
    basis: Short


@dataclass(frozen=True, slots=True)
class VoteEvent:
    """One judge's answer to one set.

    Attributes:
        id: uuid that the judge's page or program made up; a second event of the same id is the
            same event.
        time: when the answer arrived, UTC.
        arena: name of the log that first held the event.
        judge: salted hash of who judged; nothing leads back to a person.
        judge_kind: ``human``, ``automatic`` (a metric or a preference model), or ``vlm``.
        judge_name: name and version of a program; empty for a person.
        session: one visit of the page.
        task: what was asked: the nearest to full precision, or the one liked best.
        board: key of the board: workload, policy, variant, budget and target.
        unit: the prompt, as ``ranking.votes.Vote.unit``.
        prompt_sha256: of the prompt's text.
        seed: of the images.
        image: number of the image in its folder.
        set: id of the set, which was issued once and is answered once.
        purpose: ``rank``; ``repeat`` (asked before, to see whether the answer stays);
            ``gold-order`` (the destroyed image belongs below the intact one); ``gold-tie`` (two
            images are copies and belong in one tier). Only ``rank`` counts on a board.
        shown: the images, in the order shown.
        reference: whether full precision's image was shown beside them.
        mode: ``rank``; ``best`` (one above all others, which tie); ``bad`` (all are bad, and tie);
            ``skip`` (no answer).
        tiers: positions in ``shown`` in tiers, the best first; those of one tier tie.
        dwell_ms: milliseconds between showing and answer, as the judge's page measured them.
        matchmaker: what chose the set.
        page: version of the page.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: Uuid
    time: Time
    arena: Short
    judge: Short
    judge_kind: JudgeKind
    judge_name: Text
    session: Uuid
    task: Task
    board: Name
    unit: Name
    prompt_sha256: Hash
    seed: Count
    image: Count
    set: Token
    purpose: Purpose
    shown: Annotated[tuple[Shown, ...], Field(min_length=2, max_length=MOST_SHOWN)]
    reference: bool
    mode: Mode
    tiers: Tiers
    dwell_ms: Count
    matchmaker: Matched
    page: Text
    kind: Literal["vote"] = "vote"
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        check_time(self.time)
        check_answer(self.mode, self.tiers, len(self.shown))
        names = {shown.contestant for shown in self.shown}
        if self.purpose in ("rank", "repeat") and len(names) < len(self.shown):
            raise ValueError("a set shows a contestant twice and is no check")

    @property
    def ranked(self) -> bool:
        """Whether it orders images so that it may count on a board."""
        return self.purpose == "rank" and self.mode != "skip"

    def vote(self) -> Vote:
        """The vote in the form that the ranking reads.

        Raises:
            ValueError: a skipped set, or one that shows a contestant twice.
        """
        names = tuple(shown.contestant for shown in self.shown)
        tiers = tuple(tuple(names[position] for position in tier) for tier in self.tiers)
        # who picks the best says nothing of the others' order
        return Vote(self.unit, names, tiers, self.judge, partial=self.mode == "best")


@dataclass(frozen=True, slots=True)
class VoidEvent:
    """Takes a vote back. The vote stays in the log and counts no more.

    Attributes:
        id: uuid of this event.
        time: when, UTC.
        arena: name of the log that first held the event.
        vote: id of the vote.
        reason: why, in words.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: Uuid
    time: Time
    arena: Short
    vote: Uuid
    reason: Text
    kind: Literal["void"] = "void"
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        check_time(self.time)


@dataclass(frozen=True, slots=True)
class WithdrawEvent:
    """A judge takes back an own vote. The vote stays in the log and counts no more.

    Attributes:
        id: uuid of this event, made by the judge's page.
        time: when, UTC.
        arena: name of the log that first held the event.
        judge: who takes it back; a vote of another judge stands.
        vote: id of the vote.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: Uuid
    time: Time
    arena: Short
    judge: Short
    vote: Uuid
    kind: Literal["withdraw"] = "withdraw"
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        check_time(self.time)


Event = VoteEvent | VoidEvent | WithdrawEvent


def check_time(text: str) -> None:
    """Check that a text of the right shape is a moment.

    Raises:
        ValueError: it is none, such as the 31st of February.
    """
    datetime.datetime.fromisoformat(text)


def check_answer(mode: str, tiers: Sequence[Sequence[int]], size: int) -> None:
    """Check that tiers answer a set of ``size`` images in a mode.

    Raises:
        ValueError: they do not; one line says why.
    """
    placed = [position for tier in tiers for position in tier]
    if mode == "skip":
        if placed:
            raise ValueError("a skipped set has no tiers")
        return
    if sorted(placed) != list(range(size)):
        raise ValueError(f"the tiers must hold each of the {size} images exactly once")
    if mode == "bad" and len(tiers) != 1:
        raise ValueError("images that are all bad share one tier")
    if mode == "best" and (len(tiers) != 2 or len(tiers[0]) != 1):
        raise ValueError("a best image stands alone above one tier of all others")


@functools.cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def schema() -> dict[str, Any]:
    """The JSON schema of an event."""
    return _adapter().json_schema()


def parse(text: str | bytes) -> Event:
    """The event of a JSON text.

    Raises:
        BadEvent: the text is no event.
    """
    return checked(_adapter(), text)


def checked(adapter: TypeAdapter[T], text: str | bytes) -> T:
    """A value of a JSON text under a strict schema.

    Raises:
        BadEvent: too large, no JSON, or a field is missing, unknown or wrong; one line names it.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MOST_BYTES:
        raise BadEvent(f"{len(data)} bytes, more than the {MOST_BYTES} of any event")
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in fault["loc"]) or "the document"
        is_json = fault["type"] != "json_invalid"
        raise BadEvent(f"{where}: {fault['msg']}", is_json=is_json) from None


def line(event: Event) -> str:
    """The one text of an event: JSON with sorted keys and no spaces, without a line break."""
    plain = _adapter().dump_python(event, mode="json")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def digest(text: str) -> str:
    """The sha256 of a text, 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stamp(now: float) -> str:
    """A time in seconds since 1970 as UTC text, to the millisecond.

    Args:
        now: such as ``time.time()``.
    """
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events by time, then by id: the same for a log, its export and its merges."""
    return sorted(events, key=lambda event: (event.time, event.id))


def standing_votes(events: Iterable[Event]) -> list[VoteEvent]:
    """The votes that were not taken back, in the order given."""
    events = list(events)
    back = taken_back(events)
    return [event for event in events if isinstance(event, VoteEvent) and event.id not in back]


def taken_back(events: Iterable[Event]) -> set[str]:
    """Ids of the votes that were voided, or withdrawn by the judge who had cast them."""
    back, withdrawn, judges = set(), [], {}
    for event in events:
        match event:
            case VoidEvent(vote=vote):
                back.add(vote)
            case WithdrawEvent(vote=vote, judge=judge):
                withdrawn.append((vote, judge))
            case VoteEvent(id=name, judge=judge):
                judges[name] = judge
    return back | {vote for vote, judge in withdrawn if judges.get(vote) == judge}
