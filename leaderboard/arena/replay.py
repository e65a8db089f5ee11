"""A board is a function of the log: the same events give the same bytes, in whatever order."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quantarena.leaderboard.arena.engines.protocols import BoardLine, Standings
from quantarena.leaderboard.arena.events import (
    Event,
    VoteEvent,
    in_order,
    standing_votes,
    taken_back,
)
from quantarena.leaderboard.arena.memory import by_board
from quantarena.leaderboard.arena.posterior import Corrected, corrected

HUMAN = frozenset({"human"})


@dataclass(frozen=True, slots=True)
class ReplayedBoard:
    """One board and task of a log.

    Attributes:
        board: key of the board.
        task: what was asked.
        engine: name of the standings.
        votes: votes that count.
        views: images in them.
        judges: judges who cast them.
        arenas: arenas that they come from.
        left_out: number of other votes, by reason.
        lines: the standings, the best first.
        corrected: what programs' votes make of the people's, by contestant; empty unless asked.
    """

    board: str
    task: str
    engine: str
    votes: int
    views: int
    judges: int
    arenas: int
    left_out: dict[str, int]
    lines: tuple[BoardLine, ...]
    corrected: tuple[Corrected, ...] = ()


def replay(
    events: Iterable[Event],
    standings: Standings,
    *,
    kinds: frozenset[str] = HUMAN,
    correct: bool = False,
) -> tuple[ReplayedBoard, ...]:
    """Every board of a log.

    Args:
        events: in any order.
        standings: turns votes into lines.
        kinds: votes of judges of these kinds count.
        correct: whether the votes of programs also correct those of people, as ``posterior`` says.
    """
    ordered = in_order(events)
    void = taken_back(ordered)
    everything = [event for event in ordered if isinstance(event, VoteEvent)]
    standing = by_board(standing_votes(ordered))
    return tuple(
        _board(board, task, votes, standing.get((board, task), []), standings, kinds, correct, void)
        for (board, task), votes in by_board(everything).items()
    )


def document(boards: Sequence[ReplayedBoard]) -> str:
    """Boards as one JSON text."""
    plain: Any = [asdict(board) for board in boards]
    return json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _board(
    board: str,
    task: str,
    everything: Sequence[VoteEvent],
    standing: Sequence[VoteEvent],
    standings: Standings,
    kinds: frozenset[str],
    correct: bool,
    void: set[str],
) -> ReplayedBoard:
    counted = [event for event in standing if event.ranked and event.judge_kind in kinds]
    left_out = Counter(
        reason for event in everything if (reason := _left_out(event, kinds, void)) is not None
    )
    votes = [event.vote() for event in counted]
    names = sorted({name for vote in votes for name in vote.contestants})
    return ReplayedBoard(
        board=board,
        task=task,
        engine=standings.name,
        votes=len(votes),
        views=sum(len(vote.contestants) for vote in votes),
        judges=len({event.judge for event in counted}),
        arenas=len({event.arena for event in counted}),
        left_out=dict(sorted(left_out.items())),
        lines=standings.board(votes, names) if names else (),
        corrected=corrected(standing) if correct else (),
    )


def _left_out(event: VoteEvent, kinds: frozenset[str], void: set[str]) -> str | None:
    """Why a vote does not count; None where it does."""
    if event.id in void:
        return "taken back"
    if event.mode == "skip":
        return "skipped"
    if event.purpose != "rank":
        return "asked again" if event.purpose == "repeat" else "checks"
    return None if event.judge_kind in kinds else f"{event.judge_kind} judges"
