"""Boards and judges as tables of text, for the command line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantarena.leaderboard.arena.quality import Estimate, JudgeQuality
from quantarena.leaderboard.arena.replay import ReplayedBoard


@dataclass(frozen=True, slots=True)
class Words:
    """One table.

    Attributes:
        title: the line above it.
        columns: headings.
        rows: cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def board_words(boards: Sequence[ReplayedBoard]) -> Iterator[Words]:
    """One table for each board, and one more where it was corrected by programs."""
    for board in boards:
        left = ", ".join(f"{count} {reason}" for reason, count in board.left_out.items())
        yield Words(
            f"{board.board}, {board.task}: {many(board.votes, 'vote')} of "
            f"{many(board.judges, 'judge')}, {many(board.views, 'view')}, by {board.engine}"
            + (f" (left out: {left})" if left else ""),
            ("place", "method", "score [95 % interval]", "ranks", "votes"),
            tuple(
                (
                    str(line.place),
                    line.contestant,
                    f"{line.mu:.1f} [{line.low:.1f}, {line.high:.1f}]",
                    f"{line.best_rank} to {line.worst_rank}",
                    str(line.votes),
                )
                for line in board.lines
            ),
        )
        if board.corrected:
            yield Words(
                "corrected by programs",
                ("method", "people", "with programs"),
                tuple(
                    (one.contestant, _number(one.before), f"{one.mu:.1f}")
                    for one in board.corrected
                ),
            )


def quality_words(judges: Sequence[JudgeQuality]) -> Words:
    """One line for each judge."""
    return Words(
        many(len(judges), "judge"),
        (
            "judge",
            "kind",
            "votes",
            "agrees (tau-b)",
            "alpha",
            "same again",
            "checks failed",
            "quick",
            "first wins",
            "board without",
        ),
        tuple(
            (
                one.name or one.judge,
                one.kind,
                str(one.votes),
                _interval(one.agreement),
                "-" if one.alpha is None else f"{one.alpha:.2f} ({one.alpha_pairs})",
                _interval(one.retest),
                f"{one.failed} of {one.checks}",
                f"{one.quick:.0%}",
                _interval(one.first_wins),
                _influence(one),
            )
            for one in judges
        ),
    )


def many(number: int, what: str) -> str:
    """A number with its noun."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.2f} ({estimate.n})"
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}] ({estimate.n})"


def _influence(one: JudgeQuality) -> str:
    if not one.influence:
        return "-"
    worst = one.influence[0]
    leader = ", another leader" if worst.leader else ""
    return f"tau {worst.tau:.2f}, ranks move by {worst.moved}{leader}"
