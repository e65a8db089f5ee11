"""The board `personalisation`: one row for each approach and subject.

Every cell runs in a process of its own and leaves a folder; a board that was interrupted goes on
where it was. Full fine-tuning and the float model before tuning are the first rows, and what the
others are compared with.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from quantarena.bench.closure import closure
from quantarena.bench.errors import QuantArenaError
from quantarena.bench.files import write_atomic
from quantarena.bench.personalise.cell import DRAWN, REQUEST, RESULT, TuningCell
from quantarena.bench.personalise.emoji import case, views
from quantarena.bench.personalise.scores import Score, drift_values, subject_values, text_values
from quantarena.bench.spec import content_key
from quantarena.methods.tuning import Approach

SIDE = 32
"""Side of the pictures of emoji-t2i."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A row's approach, before tuning or after it."""

    approach: Approach
    tuned: bool = True

    @property
    def title(self) -> str:
        """Name for readers."""
        if self.tuned:
            return self.approach.name_for_readers
        return "packed, not tuned" if self.approach.packs else "full precision, not tuned"


BEFORE, FULL = Contestant(Approach.FULL, tuned=False), Contestant(Approach.FULL)
CONTESTANTS = (
    BEFORE,
    FULL,
    Contestant(Approach.PEQA, tuned=False),
    Contestant(Approach.LORA),
    Contestant(Approach.PEQA),
    Contestant(Approach.TUNEQDM),
)


@dataclass(frozen=True, slots=True)
class BoardRow:
    """The scores of one approach on one subject.

    Attributes:
        subject: name of the case.
        title: name of the approach.
        result: what its process measured, see ``cell.run_cell``.
        similarity: ``scores.SUBJECT``.
        text: alignment with the caption without the token.
        drift: ``scores.DRIFT``, to the float model before tuning.
        feature_drift: ``scores.FEATURE_DRIFT``.
    """

    subject: str
    title: str
    result: dict[str, Any]
    similarity: Score
    text: Score
    drift: Score
    feature_drift: Score

    @property
    def growth(self) -> int:
        """Peak memory while tuning above the same process with the loaded float network, bytes."""
        memory = self.result["memory"]
        return max(0, int(memory["peak"]) - int(memory["network"]))


def request(subject: str, who: Contestant, **settings: Any) -> TuningCell:
    """The cell of one row; ``settings`` are the fields that all rows share."""
    updates = settings.pop("updates")
    return TuningCell(
        subject=subject,
        approach=who.approach.value,
        updates=updates if who.tuned else 0,
        **settings,
    )


def measured(cell: TuningCell, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run a cell in a process of its own, or read what an earlier run of the same code left.

    Raises:
        QuantArenaError: the process failed; the message has its last line.
    """
    code = closure("quantarena.bench.personalise.cell").key
    place = folder / content_key([asdict(cell), code])[:16]
    if not (place / RESULT).is_file():
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / REQUEST, json.dumps(asdict(cell), indent=1) + "\n")
        done = subprocess.run(
            [sys.executable, "-m", "quantarena.bench.personalise.cell", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise QuantArenaError(f"{cell.approach} on {cell.subject} failed: {last}")
    return json.loads((place / RESULT).read_text()), load_file(place / DRAWN)


def board(
    folder: Path,
    subjects: Iterable[str],
    contestants: Sequence[Contestant] = CONTESTANTS,
    said: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> list[BoardRow]:
    """Run all cells and score them.

    Args:
        folder: where cells are kept.
        subjects: names of cases.
        contestants: the rows of each subject, the float model before tuning first.
        said: told what ran.
        settings: the other fields of ``TuningCell``.
    """
    rows = []
    for subject in subjects:
        before: Tensor | None = None
        for who in contestants:
            result, drawn = measured(request(subject, who, **settings), folder)
            before = drawn["others"] if before is None else before
            rows.append(scored(subject, who, result, drawn, before))
            said(line(rows[-1]))
    return rows


def scored(
    subject: str,
    who: Contestant,
    result: dict[str, Any],
    drawn: dict[str, Tensor],
    before: Tensor,
) -> BoardRow:
    """A row from its pictures."""
    drawings, pictures = case(subject), drawn["subject"]
    values, captions = np.empty(len(pictures)), [d.caption for d in drawings]
    for place, drawing in enumerate(drawings):
        mine = slice(place, None, len(drawings))  # prompts take turns
        values[mine] = subject_values(pictures[mine], views(drawing, SIDE)[1].images)
    told = [captions[i % len(captions)] for i in range(len(pictures))]
    perceived, felt = drift_values(before, drawn["others"])
    return BoardRow(
        subject,
        who.title,
        result,
        Score.of(values),
        Score.of(text_values(pictures, told)),
        Score.of(perceived),
        Score.of(felt),
    )


HEAD = (
    "subject",
    "approach",
    "learns",
    "subject score",
    "text alignment",
    "drift, LPIPS",
    "drift, features",
    "noise error, held out",
    "peak, MiB",
    "growth, MiB",
    "core-s",
)


def cells_of(row: BoardRow) -> tuple[str, ...]:
    """The entries of a row, in the order of ``HEAD``."""
    tuned, memory = row.result["updates"] > 0, row.result["memory"]
    return (
        row.subject,
        row.title,
        f"{row.result['trainable']:,}" if tuned else "-",
        shown(row.similarity),
        shown(row.text),
        shown(row.drift),
        shown(row.feature_drift),
        f"{row.result['loss']:.4f}",
        f"{memory['peak'] / 2**20:.1f}" if tuned else "-",
        f"{row.growth / 2**20:.1f}" if tuned else "-",
        f"{row.result['cpu_seconds']:.0f}" if tuned else "-",
    )


def shown(score: Score) -> str:
    """A mean with its interval."""
    if score.low is None or score.high is None:
        return f"{score.mean:.3f}"
    return f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]"


def line(row: BoardRow) -> str:
    """A row as one line of text."""
    return ", ".join(
        entry if place < 2 else f"{name} {entry}"
        for place, (name, entry) in enumerate(zip(HEAD, cells_of(row), strict=True))
        if entry != "-"
    )


def markdown(rows: Iterable[BoardRow]) -> str:
    """The board as a Markdown table."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells_of(row))} |" for row in rows)])


def verdicts(rows: Sequence[BoardRow]) -> list[str]:
    """For each subject and approach on codes: its growth, and whether its score is full's."""
    lines = []
    for row in rows:
        full = next(r for r in rows if r.subject == row.subject and r.title == FULL.title)
        if row.result["approach"] == Approach.FULL.value or not row.result["updates"]:
            continue
        low, high = full.similarity.low, full.similarity.high
        inside = low is not None and high is not None and low <= row.similarity.mean <= high
        above = high is not None and row.similarity.mean > high
        place = "inside" if inside else "above" if above else "below"
        peak, all_of = row.result["memory"]["peak"], full.result["memory"]["peak"]
        lines.append(
            f"{row.subject}, {row.title}: growth {row.growth / max(1, full.growth):.2f} of full "
            f"fine-tuning's, peak {peak / max(1, all_of):.2f}; subject score {place} the interval"
        )
    return lines
