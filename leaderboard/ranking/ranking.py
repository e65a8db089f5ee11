"""Rows in, ranked boards out. ``rank_results`` writes nothing; ``write_ranking`` writes JSON."""

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
"""Votes of one board; beyond it a board asks one round a prompt instead of two."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one contestant stands.

    Attributes:
        contestant: ``method@bits``.
        method: name of the method.
        bits: requested bits.
        mu: score; contestants of a board average 25.
        low: lower end of the 95 % bootstrap interval over prompts.
        high: upper end.
        sigma: K-Sort's own deviation, known to be too small; never drawn as an interval.
        place: first place of its tie group; contestants of one group share it.
        best_rank: 1 + contestants that are surely better.
        worst_rank: contestants less those that are surely worse.
        group: tie group, 1 is the best.
        better_than_next: probability of being above the next one down, None for the last.
        mean_rank: mean place over all prompts from the full table, an independent check.
        bradley_terry: log strength of a batch fit of the same votes, another check.
        votes: votes it took part in.
        units: prompts it has scores for, or images where there are none.
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
        metric: what the judge looked at, None when no contestant has per-image scores.
        margin: gap below which two images tie.
        margin_source: where the margin comes from.
        floor: mean of the metric for full precision in another number format, if measured.
        size: K of the votes.
        votes: votes cast.
        views: images looked at in them.
        units: prompts, or images where there are none.
        standings: ranked contestants.
        unranked: why other contestants have no rank.
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
    """All boards of a results folder."""

    boards: tuple[BoardRanking, ...]
    seed: int
    level: float = LEVEL
    rules: Rules = DEFAULT_RULES

    def board(self, board: BoardId) -> BoardRanking | None:
        """The ranking of that board, if it has rows."""
        return next((found for found in self.boards if found.board == board), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return {"schema_version": 1, **dataclasses.asdict(self)}


def rank_results(folder: Path, *, seed: int = 0, size: int = 4) -> Ranking:
    """Rank every board of a results folder; writes nothing.

    Args:
        folder: such as ``results/quick``.
        seed: of the judge's sets, the shuffles and the bootstrap.
        size: K, contestants a vote compares.
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
    # Two rounds deal most pairs often enough; one keeps a very large board inside its seconds.
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
    for spot, number in enumerate(order):
        method, bits = names[number].rsplit("@", 1)
        rated = bool(cast[number])
        following = order[spot + 1] if spot + 1 < len(order) else None
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
