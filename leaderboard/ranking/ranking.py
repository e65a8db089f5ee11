"""Ranks the rows of a results folder, board by board."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantarena.bench.files import write_atomic
from quantarena.bench.schema import Row
from quantarena.leaderboard.inference.run_effects import FEWEST_RUNS
from quantarena.leaderboard.inference.sign_flips import LEVEL
from quantarena.leaderboard.ranking.judge import tie_margin
from quantarena.leaderboard.ranking.quality import QualityStanding, quality_standings
from quantarena.leaderboard.ranking.read_results import BoardId, by_board, load_rows
from quantarena.leaderboard.ranking.score_table import score_table
from quantarena.leaderboard.ranking.standings import Standing, standings

SCHEMA_VERSION = 2
"""Of ``ranking.json``. Version 1 ranked all widths of a board together, by K-Sort."""


@dataclass(frozen=True, slots=True)
class BoardRanking:
    """The fidelity ranking of one board, width by width, best first.

    Attributes:
        board: what was compared.
        metric: metric that images were judged by, None when no contestant has per-image scores.
        margin: difference up to which two images tie.
        margin_source: how the margin was found, in words.
        floor: mean of the metric for full precision with bfloat16 weights, if it was measured.
        units: number of prompts, or of images without prompts.
        runs: number of seeds.
        standings: the ranked contestants.
        unranked: for each other contestant the reason why it has no rank.
        quality: ranks in metrics of whole sets of images.
    """

    board: BoardId
    metric: str | None
    margin: float
    margin_source: str
    floor: float | None
    units: int
    runs: int
    standings: tuple[Standing, ...]
    unranked: Mapping[str, str]
    quality: tuple[QualityStanding, ...] = ()

    @property
    def beyond_runs(self) -> bool:
        """True where there are runs enough for claims on other runs than those at hand."""
        return self.runs >= FEWEST_RUNS

    def standing(self, name: str) -> Standing | None:
        """The standing of ``method@bits``, if it is ranked."""
        return next((s for s in self.standings if s.contestant == name), None)


@dataclass(frozen=True, slots=True)
class Ranking:
    """All boards of a results folder.

    Attributes:
        boards: one ranking per board, in the order of the boards.
        level: confidence of the intervals, and of all claims of one width together.
    """

    boards: tuple[BoardRanking, ...]
    level: float = LEVEL

    def board(self, board: BoardId) -> BoardRanking | None:
        """The ranking of that board, if it has rows."""
        return next((ranked for ranked in self.boards if ranked.board == board), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


def rank_results(folder: Path) -> Ranking:
    """Rank every board of a results folder, such as ``results/quick``. Nothing is written."""
    boards = by_board(load_rows(folder).rows)
    return Ranking(tuple(rank_board(board, rows, folder) for board, rows in boards.items()))


def write_ranking(folder: Path) -> Ranking:
    """Rank a results folder and write ``ranking.json`` beside its rows.

    Returns:
        The ranking that was written.
    """
    ranking = rank_results(folder)
    text = json.dumps(ranking.to_dict(), indent=1, allow_nan=False)
    write_atomic(folder / "ranking.json", text + "\n")
    return ranking


def rank_board(board: BoardId, rows: Sequence[Row], folder: Path) -> BoardRanking:
    """Rank the contestants of one board."""
    table, unranked = score_table(rows, folder)
    quality = quality_standings(rows, folder)
    if table is None:
        return BoardRanking(board, None, 0.0, "", None, 0, 0, (), unranked, quality)
    margin = tie_margin(table)
    floor = table.floor[np.isfinite(table.floor)]
    return BoardRanking(
        board=board,
        metric=table.metric,
        margin=margin.value,
        margin_source=margin.source,
        floor=float(floor.mean()) if len(floor) else None,
        units=len(set(table.units)),
        runs=len(set(table.runs)),
        standings=standings(table, margin),
        unranked=unranked,
        quality=quality,
    )
