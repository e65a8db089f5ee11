"""Reads a results folder. Nothing is written, and a file that cannot be read is reported."""

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quantarena.bench.files import read_text
from quantarena.bench.schema import Row, Status
from quantarena.bench.scores import read_scores
from quantarena.bench.spec import (
    DEFAULT_POLICY,
    DEFAULT_VARIANT,
    Budget,
    Cell,
    budget_content,
    content_key,
)
from quantarena.bench.store import parse_row
from quantarena.leaderboard.ranking.votes import Floats

FP_METHOD = "fp"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows of a folder.

    Attributes:
        rows: in a fixed order: workload, policy, variant, method, bits, seed.
        problems: one line for each file that is no row, with its name.
    """

    rows: tuple[Row, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class BoardId:
    """Cells that may be compared with one another: equal in everything but method, bits and seed.

    Attributes:
        workload: name of the model and its conditions.
        policy: name of the policy that decides which layers get which widths.
        variant: ``paper`` (the formulas as published) or ``release`` (as in the released code).
        budget: hash of the budget of each cell.
        target: where and how its networks run, as ``Target.label``; empty for the default.
    """

    workload: str
    policy: str
    variant: str
    budget: str
    target: str = ""

    @classmethod
    def of(cls, cell: Cell) -> "BoardId":
        """The board that a cell belongs to."""
        budget = _budget_key(cell.budget)
        return cls(cell.workload, cell.policy, cell.variant, budget, cell.target.label)

    @property
    def title(self) -> str:
        """The workload, then policy, variant and target where they are not the default."""
        extra = [
            text
            for text, default in (
                (f"{self.policy} policy", f"{DEFAULT_POLICY} policy"),
                (f"{self.variant} variant", f"{DEFAULT_VARIANT} variant"),
            )
            if text != default
        ]
        return " · ".join([self.workload, *extra, *filter(None, [self.target])])


@functools.cache
def _budget_key(budget: Budget) -> str:
    """A short hash of a budget, which thousands of cells share."""
    return content_key(budget_content(budget), 6)


def contestant(cell: Cell) -> str:
    """Name of a contestant of a board, ``method@bits`` with any options; the same for all seeds."""
    return f"{cell.configured}@{cell.bits}"


def load_rows(folder: Path, known: Iterable[Row] = ()) -> Loaded:
    """The rows in ``folder/rows/*.json``, in a fixed order.

    Args:
        folder: the results folder.
        known: rows of it that were read already; their files are not read again.
    """
    rows = {row.key: row for row in known}
    problems = []
    for path in sorted((folder / "rows").glob("*.json")):
        if path.stem in rows:
            continue
        try:
            # Rows of another program may come without a digest.
            row = parse_row(read_text(path), signed=False)
        except (OSError, ValueError) as error:
            problems.append(f"{path.name}: {error}")
        else:
            rows[row.key] = row
    return Loaded(tuple(sorted(rows.values(), key=_order)), tuple(problems))


def _order(row: Row) -> tuple[str, ...]:
    cell = row.cell
    return (cell.workload, cell.policy, cell.variant, cell.method, cell.bits, f"{cell.seed:09d}")


def by_board(rows: Iterable[Row]) -> dict[BoardId, tuple[Row, ...]]:
    """The rows of each board, in the order of the boards."""
    boards: dict[BoardId, list[Row]] = {}
    for row in rows:
        boards.setdefault(BoardId.of(row.cell), []).append(row)
    return {board: tuple(boards[board]) for board in sorted(boards)}


def load_scores(folder: Path, row: Row) -> Mapping[str, Floats]:
    """Arrays of a row's scores file; empty where it has none.

    Raises:
        ValueError: the file is absent or damaged; one line says how.
    """
    name = row.artefacts.get("scores")
    if not name or row.status is not Status.OK:
        return {}
    path = os.path.join(folder, name)
    try:
        facts = os.stat(path)
    except OSError:
        return _flat(path)
    return _kept(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=20_000)
def _kept(path: str, changed: int, size: int) -> Mapping[str, Floats]:
    """The arrays of an unchanged file: a page asks for them three times."""
    return _flat(path)


def _flat(path: str) -> Mapping[str, Floats]:
    return {key: values.ravel() for key, values in read_scores(Path(path)).items()}
