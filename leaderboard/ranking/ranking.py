"""Ranks the rows of a results folder, board by board."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantarena.bench.files import write_atomic
from quantarena.bench.schema import Row
from quantarena.leaderboard.inference.sign_flips import LEVEL
from quantarena.leaderboard.inference.workers import each
from quantarena.leaderboard.ranking.board_ranking import BoardRanking
from quantarena.leaderboard.ranking.combined import CombinedBoard, combine
from quantarena.leaderboard.ranking.image_scores import tie_margin
from quantarena.leaderboard.ranking.pooled import Ends, ends_of
from quantarena.leaderboard.ranking.quality import quality_standings
from quantarena.leaderboard.ranking.read_results import BoardId, Loaded, by_board, load_rows
from quantarena.leaderboard.ranking.score_table import another_draw, score_table
from quantarena.leaderboard.ranking.standings import standings

SCHEMA_VERSION = 2
"""Of ``ranking.json``. Version 1 ranked all widths of a board together, by K-Sort."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """All boards of a results folder.

    Attributes:
        boards: one ranking per board, in the order of the boards.
        combined: all workloads together, width by width.
        level: confidence of the intervals, and of all claims of one width together.
        ends: intervals of means over several seeds, by board and contestant. The page shows them
            with the measurements; they are no part of ``ranking.json``.
    """

    boards: tuple[BoardRanking, ...]
    combined: tuple[CombinedBoard, ...] = ()
    level: float = LEVEL
    ends: Mapping[BoardId, Mapping[str, Mapping[str, Ends]]] = field(default_factory=dict)

    def board(self, board: BoardId) -> BoardRanking | None:
        """The ranking of that board, if it has rows."""
        return next((ranked for ranked in self.boards if ranked.board == board), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        shown = dataclasses.asdict(dataclasses.replace(self, ends={}))
        del shown["ends"]
        return {"schema_version": SCHEMA_VERSION, **shown}


def rank_results(folder: Path) -> Ranking:
    """Rank every board of a results folder, such as ``results/quick``. Nothing is written."""
    return rank_rows(load_rows(folder).rows, folder)


def rank_rows(rows: Sequence[Row], folder: Path) -> Ranking:
    """Rank rows that were read already; their scores are in ``folder``."""
    boards = tuple(by_board(rows).items())
    found = each(lambda board: _ranked(*board, folder), boards, len(rows))
    ranked = tuple(board for board, _ in found)
    ends = {board: own for (board, _), (_, own) in zip(boards, found, strict=True)}
    return Ranking(ranked, combine(ranked), ends=ends)


def _ranked(
    board: BoardId, rows: Sequence[Row], folder: Path
) -> tuple[BoardRanking, dict[str, dict[str, Ends]]]:
    """All that a board's scores are needed for: they are read once, in one process."""
    return rank_board(board, rows, folder), ends_of(rows, folder)


def write_ranking(folder: Path, loaded: Loaded | None = None) -> Ranking:
    """Rank a results folder and write ``ranking.json`` beside its rows.

    Args:
        folder: the results folder.
        loaded: its rows, where the caller has read them.

    Returns:
        The ranking that was written.
    """
    ranking = rank_rows((loaded or load_rows(folder)).rows, folder)
    # without an indent, which json writes ten times as slowly
    text = json.dumps(ranking.to_dict(), allow_nan=False)
    write_atomic(folder / "ranking.json", text + "\n")
    return ranking


def rank_board(board: BoardId, rows: Sequence[Row], folder: Path) -> BoardRanking:
    """Rank the contestants of one board."""
    table, unranked = score_table(rows, folder)
    quality = quality_standings(rows, folder)
    if table is None:
        return BoardRanking(board, None, 0.0, "", None, None, 0, 0, (), unranked, quality)
    margin = tie_margin(table)
    floor = table.floor[np.isfinite(table.floor)]
    return BoardRanking(
        board=board,
        metric=table.metric,
        margin=margin.value,
        margin_source=margin.source,
        floor=float(floor.mean()) if len(floor) else None,
        another_draw=another_draw(rows, folder, table.metric),
        units=len(set(table.units)),
        runs=len(set(table.runs)),
        standings=standings(table, margin),
        unranked=unranked,
        quality=quality,
        seeds=tuple(sorted(set(table.runs))),
    )
