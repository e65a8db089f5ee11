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
from quantarena.leaderboard.ranking.bradley_terry import bradley_terry
from quantarena.leaderboard.ranking.intervals import (
    LEVEL,
    Spread,
    estimate,
    separations,
    tie_groups,
)
from quantarena.leaderboard.ranking.judge import (
    Margin,
    ScoreTable,
    cast_votes,
    mean_ranks,
    tie_margin,
)
from quantarena.leaderboard.ranking.ksort import DEFAULT_RULES, Rules
from quantarena.leaderboard.ranking.read_results import BoardId, by_board, load_rows
from quantarena.leaderboard.ranking.score_table import score_table
from quantarena.leaderboard.ranking.votes import Vote, tabulate

MOST_VOTES = 4000
"""Largest number of votes of a board with two rounds per image; larger boards have one round."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one contestant stands.

    Attributes:
        contestant: ``method@bits``.
        method: name of the method.
        bits: requested bits.
        mu: score; the mean over the contestants of a board is 25.
        low: lower end of the 95 % bootstrap interval over prompts.
        high: upper end.
        sigma: K-Sort's own standard deviation, known to be too small; never drawn as an interval.
        place: first place of its tie group, shared by all contestants of the group.
        best_rank: 1 plus the number of contestants that are better with 95 % confidence.
        worst_rank: number of contestants minus those that are worse with 95 % confidence.
        group: number of its tie group, 1 for the best.
        better_than_next: probability that it is better than the next in order, None for the last.
        mean_rank: mean place over all images, from the scores themselves; checks the score.
        bradley_terry: log strength of a Bradley-Terry fit of the same votes; another check.
        votes: number of votes that it took part in.
        units: number of prompts (or of images, without prompts) that it has scores for.
    """

    contestant: str
    method: str
    bits: str
    mu: float
    low: float
    high: float
    sigma: float
    place: int
    best_rank: int
    worst_rank: int
    group: int
    better_than_next: float | None
    mean_rank: float
    bradley_terry: float
    votes: int
    units: int


@dataclass(frozen=True, slots=True)
class BoardRanking:
    """The fidelity ranking of one board, best first.

    Attributes:
        board: what was compared.
        metric: metric that the judge used, None when no contestant has per-image scores.
        margin: difference up to which two images tie.
        margin_source: how the margin was found, in words.
        floor: mean of the metric for full precision with bfloat16 weights, if it was measured.
        size: K, contestants per vote.
        votes: number of votes.
        views: number of images in all votes together.
        units: number of prompts, or of images without prompts.
        standings: the ranked contestants.
        unranked: for each other contestant the reason why it has no rank.
    """

    board: BoardId
    metric: str | None
    margin: float
    margin_source: str
    floor: float | None
    size: int
    votes: int
    views: int
    units: int
    standings: tuple[Standing, ...]
    unranked: Mapping[str, str]

    def standing(self, name: str) -> Standing | None:
        """The standing of ``method@bits``, if it is ranked."""
        return next((s for s in self.standings if s.contestant == name), None)


@dataclass(frozen=True, slots=True)
class Ranking:
    """All boards of a results folder, and what their ranking depends on.

    Attributes:
        boards: one ranking per board, in the order of the boards.
        seed: of the judge's sets, the shuffles and the bootstrap.
        level: confidence of the intervals.
        rules: constants of the rating.
    """

    boards: tuple[BoardRanking, ...]
    seed: int
    level: float = LEVEL
    rules: Rules = DEFAULT_RULES

    def board(self, board: BoardId) -> BoardRanking | None:
        """The ranking of that board, if it has rows."""
        return next((ranked for ranked in self.boards if ranked.board == board), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return {"schema_version": 1, **dataclasses.asdict(self)}


def rank_results(folder: Path, *, seed: int = 0, size: int = 4) -> Ranking:
    """Rank every board of a results folder. Nothing is written.

    Args:
        folder: such as ``results/quick``.
        seed: of the judge's sets, the shuffles and the bootstrap.
        size: K, contestants per vote.
    """
    boards = by_board(load_rows(folder).rows)
    return Ranking(
        tuple(rank_board(board, rows, folder, seed, size) for board, rows in boards.items()), seed
    )


def write_ranking(folder: Path, *, seed: int = 0) -> Ranking:
    """Rank a results folder and write ``ranking.json`` beside its rows.

    Returns:
        The ranking that was written.
    """
    ranking = rank_results(folder, seed=seed)
    text = json.dumps(ranking.to_dict(), indent=1, allow_nan=False)
    write_atomic(folder / "ranking.json", text + "\n")
    return ranking


def rank_board(
    board: BoardId, rows: Sequence[Row], folder: Path, seed: int, size: int = 4
) -> BoardRanking:
    """Rank the contestants of one board."""
    table, unranked = score_table(rows, folder)
    if table is None:
        return BoardRanking(board, None, 0.0, "", None, size, 0, 0, 0, (), unranked)
    margin = tie_margin(table)
    floor = table.floor[np.isfinite(table.floor)]
    # Two rounds compare most pairs often enough; a very large board would take too long with two.
    rounds = 2 if 2 * len(table.units) * len(table.contestants) <= MOST_VOTES * size else 1
    votes = cast_votes(table, margin, size=size, rounds=rounds, seed=seed)
    return BoardRanking(
        board=board,
        metric=table.metric,
        margin=margin.value,
        margin_source=margin.source,
        floor=float(floor.mean()) if len(floor) else None,
        size=min(size, max(len(table.contestants), 1)),
        votes=len(votes),
        views=sum(len(vote.contestants) for vote in votes),
        units=len(set(table.units)),
        standings=_standings(table, votes, margin, seed),
        unranked=unranked,
    )


def _standings(
    table: ScoreTable, votes: Sequence[Vote], margin: Margin, seed: int
) -> tuple[Standing, ...]:
    names = table.contestants
    ballots = tabulate(votes, names)
    spread: Spread = estimate(ballots, seed=seed)
    above = separations(spread)
    group = tie_groups(spread.mu, above)
    strength = bradley_terry(ballots.wins)
    ranks = mean_ranks(table, margin)
    cast = np.bincount(ballots.members.ravel(), minlength=len(names) + 1)
    order = np.argsort(-spread.mu, kind="stable")
    prior = 1.96 * DEFAULT_RULES.sigma * np.array([-1.0, 1.0]) + DEFAULT_RULES.mu
    standings = []
    for index, number in enumerate(order):
        method, bits = names[number].rsplit("@", 1)
        rated = bool(cast[number])
        following = order[index + 1] if index + 1 < len(order) else None
        standings.append(
            Standing(
                contestant=names[number],
                method=method,
                bits=bits,
                mu=float(spread.mu[number]),
                low=float(spread.low[number]) if rated else float(prior[0]),
                high=float(spread.high[number]) if rated else float(prior[1]),
                sigma=float(spread.sigma[number]),
                place=1 + int(np.sum(group < group[number])),
                best_rank=1 + int(above[:, number].sum()),
                worst_rank=len(names) - int(above[number].sum()),
                group=int(group[number]),
                better_than_next=(
                    None if following is None else spread.better(int(number), int(following))
                ),
                mean_rank=float(ranks[number]),
                bradley_terry=float(strength[number]),
                votes=int(cast[number]),
                units=len(set(np.array(table.units)[~np.isnan(table.values[number])])),
            )
        )
    return tuple(standings)
