"""Which of several rows of one cell stands in it, and which rows may stand on one board. No torch.

The rule takes nothing on trust that a sender could choose: not times, not dates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantarena.bench.schema import Row, Status
from quantarena.bench.share.examine import Examined
from quantarena.bench.share.provenance import Standing

RULE = (
    "Of several rows of one cell, one that is ok stands before one that is not, then one that is "
    "verified before one that is self-reported, then that of the results named first. The others "
    "are kept with their times in rows/elsewhere."
)
SETTINGS = (
    *("model_sha256", "pipeline", "scheduler", "steps", "guidance", "eta", "resolution"),
    *("images", "conditions", "prompts", "reference"),
    *("lora", "inputs", "frames"),
)
"""What rows of one board and seed must say equally of their workload; all decide the images."""
NOISE = "noise_sha256"
"""Likewise, among rows drawn with one batch: it is a hash of the noise of each batch.

Where memory ran out a row has half its budget's batch. The noise of an image is the same in any."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of a source.

    Attributes:
        source: its name.
        place: number of the source on the command line.
        found: the row and what was found of it.
        own: whether the source is a results folder, no submission.
    """

    source: str
    place: int
    found: Examined
    own: bool = True

    @property
    def row(self) -> Row:
        """The row."""
        return self.found.row


def ordered(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The rows of one cell, the one that stands in it first; equal copies of a row once."""
    first = sorted(candidates, key=_order)
    copies: dict[str, Candidate] = {}
    for one in first:
        copies.setdefault(one.found.digest, one)
    return list(copies.values())


def reason(kept: Candidate, other: Candidate) -> str:
    """The part of the rule that decided between two rows."""
    names = ("it is ok", "it is verified", "its results are named first")
    pairs = zip(names, _order(kept), _order(other), strict=True)
    return next((name for name, one, two in pairs if one != two), names[-1])


def _order(one: Candidate) -> tuple[bool, bool, int]:
    verified = one.found.standing is Standing.VERIFIED
    return (one.row.status is not Status.OK, not verified, one.place)


def rank(one: Candidate, sources: int) -> tuple[bool, bool, int, int]:
    """What decides whose facts a board has where rows disagree: the smallest does.

    Args:
        one: a row of the board.
        sources: number of sources of its kind and standing that say the same.
    """
    verified = one.found.standing is Standing.VERIFIED
    return (not one.own, not verified, -sources, one.place)


Claims = Mapping[tuple[str, ...], str]
"""What a row says of its board: facts by name. Of a fact that two rows both state, they agree."""


def other_settings(candidates: Sequence[Candidate]) -> dict[int, str]:
    """Rows that cannot stand beside the others of their workload, seed and budget, with reasons.

    What is equal on a board its first rows say: own ones before those of submissions, then verified
    before self-reported ones, then what most sources say, and only then the order of the sources.
    The target does not matter here: boards of other targets are other boards.

    Returns:
        Reason by the place of the candidate in the sequence.
    """
    boards: dict[str, list[tuple[int, Candidate, Claims]]] = {}
    for number, one in enumerate(candidates):
        if one.row.status is Status.OK:
            board = boards.setdefault(one.row.cell.shared_key, [])
            board.append((number, one, _claims(one.row)))
    refused: dict[int, str] = {}
    for board in boards.values():
        said: dict[tuple[str, ...], str] = {}
        agreeing = _agreeing(board)
        for number, one, mine in sorted(board, key=lambda e: rank(e[1], agreeing[e[0]])):
            differing = _differing(mine, said)
            if differing:
                refused[number] = (
                    f"its settings are not those of the other rows of {one.row.cell.workload}: "
                    f"{', '.join(differing[:4])}"
                )
            else:
                said |= mine
    return refused


def _claims(row: Row) -> Claims:
    claims: dict[tuple[str, ...], str] = {
        (name,): repr(row.workload.get(name)) for name in SETTINGS
    }
    claims[NOISE, str(row.workload.get("batch"))] = repr(row.workload.get(NOISE))
    for m in row.measurements:
        if m.value is not None:  # where there is none, its network may not be on that machine
            key = (f"network or reference of {m.name}", "")
            claims[key] = repr((m.extractor_sha256, m.reference))
    return claims


def _differing(mine: Claims, said: Claims) -> list[str]:
    return [key[0] for key, value in mine.items() if said.get(key, value) != value]


def _agreeing(board: Sequence[tuple[int, Candidate, Claims]]) -> dict[int, int]:
    """Number of sources of a row's kind and standing that have a row which does not contradict it.

    Rows that say the same are compared once: a board may have thousands.
    """
    kinds: dict[tuple[bool, bool], dict[frozenset[Any], tuple[Claims, set[str]]]] = {}
    for _, one, mine in board:
        said = kinds.setdefault(rank(one, 0)[:2], {})
        said.setdefault(frozenset(mine.items()), (mine, set()))[1].add(one.source)
    counts = {
        (kind, content): len(
            set().union(*(names for their, names in said.values() if not _differing(mine, their)))
        )
        for kind, said in kinds.items()
        for content, (mine, _) in said.items()
    }
    return {n: counts[rank(one, 0)[:2], frozenset(mine.items())] for n, one, mine in board}
