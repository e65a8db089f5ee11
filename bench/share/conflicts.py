"""Which of several rows of one cell stands in it, and which rows may stand on one board. No torch.

The rule takes nothing on trust that a sender could choose: not times, not dates.
"""

from collections.abc import Iterable, Sequence
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
    """

    source: str
    place: int
    found: Examined

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


def other_settings(candidates: Sequence[Candidate]) -> dict[int, str]:
    """Rows that cannot stand beside the others of their workload, seed and budget, with reasons.

    The first results that have such a row set what is equal. The target does not matter here:
    boards of other targets are other boards.

    Returns:
        Reason by the place of the candidate in the sequence.
    """
    facts: dict[str, dict[str, Any]] = {}
    noises: dict[tuple[str, Any], Any] = {}
    extractors: dict[tuple[str, str], tuple[str | None, str]] = {}
    refused: dict[int, str] = {}
    for number, one in sorted(enumerate(candidates), key=lambda pair: pair[1].place):
        row = one.row
        if row.status is not Status.OK:
            continue
        board = row.cell.shared_key
        mine = {name: row.workload.get(name) for name in SETTINGS}
        first = facts.setdefault(board, mine)
        differing = [name for name in mine if mine[name] != first[name]]
        noise = row.workload.get(NOISE)
        if noises.setdefault((board, row.workload.get("batch")), noise) != noise:
            differing.append(NOISE)
        measured = {(board, m.name): (m.extractor_sha256, m.reference) for m in row.measurements}
        for key, value in measured.items():
            if extractors.setdefault(key, value) != value:
                differing.append(f"network or reference of {key[1]}")
        if differing:
            refused[number] = (
                f"its settings are not those of the other rows of {row.cell.workload}: "
                f"{', '.join(differing[:4])}"
            )
    return refused
