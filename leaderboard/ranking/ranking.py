"""Ranks the rows of a results folder, board by board."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantarena.bench.files import write_atomic
from quantarena.bench.schema import Row
from quantarena.leaderboard.inference.sign_flips import LEVEL
from quantarena.leaderboard.ranking.board_ranking import BoardRanking
from quantarena.leaderboard.ranking.combined import CombinedBoard, combine
from quantarena.leaderboard.ranking.image_scores import tie_margin
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
    """

    boards: tuple[BoardRanking, ...]
    combined: tuple[CombinedBoard, ...] = ()
    level: float = LEVEL

    def board(self, board: BoardId) -> BoardRanking | None:
        """The ranking of that board, if it has rows."""
        return next((ranked for ranked in self.boards if ranked.board == board), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


def rank_results(folder: Path) -> Ranking:
    """Rank every board of a results folder, such as ``results/quick``. Nothing is written."""
    return rank_rows(load_rows(folder).rows, folder)


def rank_rows(rows: Sequence[Row], folder: Path) -> Ranking:
    """Rank rows that were read already; their scores are in ``folder``."""
    boards = by_board(rows)
    ranked = tuple(rank_board(board, own, folder) for board, own in boards.items())
    return Ranking(ranked, combine(ranked))


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
