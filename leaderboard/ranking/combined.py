"""All workloads of a run together, width by width: which method suits a model not among them.

On each workload a contestant has a mean log loss. Methods that are equal on average still differ on
a workload, because some suit its layers better. This interaction is the noise here: the workloads
are a sample, and the question is about the next one. Its variance is pooled over contestants,

    x_iw = a_i + b_w + e_iw,    s^2 = sum e_iw^2 / ((N - 1) (W - 1)),

so that even two or three workloads say something, though little.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from quantarena.leaderboard.inference.order import SureOrder, pairs
from quantarena.leaderboard.inference.run_effects import holm
from quantarena.leaderboard.inference.sign_flips import Floats
from quantarena.leaderboard.inference.student import reach, two_sided
from quantarena.leaderboard.ranking.board_ranking import BoardRanking
from quantarena.leaderboard.ranking.standings import width_order

FEWEST_WORKLOADS, FEWEST_CONTESTANTS = 2, 3
"""Fewest workloads and contestants that show how much methods differ by workload."""


@dataclass(frozen=True, slots=True)
class CombinedStanding:
    """Where one contestant stands over all workloads of a width.

    Attributes:
        contestant: ``method@bits``.
        method: name of the method.
        factor: its typical loss as a multiple of the leader's, geometric mean over workloads.
        low: lower end of the 95 % interval of this factor on a workload that is not among them.
        high: upper end.
        by_workload: this factor on each workload, in their order.
        best_rank: 1 plus the number of contestants that are surely nearer on average.
        worst_rank: number of contestants minus those that are surely farther on average.
    """

    contestant: str
    method: str
    factor: float
    low: float
    high: float
    by_workload: tuple[float, ...]
    best_rank: int
    worst_rank: int


@dataclass(frozen=True, slots=True)
class CombinedBoard:
    """One width of all workloads with the same policy, variant and target.

    Attributes:
        title: policy, variant and target where they are not the default; empty otherwise.
        bits: the width.
        workloads: names of the workloads, in order.
        needed: a method whose typical loss is this many times smaller over these workloads will
            be nearer than another on the next one too, with 95 % confidence for one pair.
        standings: the contestants that every one of the workloads has, the nearest first.
    """

    title: str
    bits: str
    workloads: tuple[str, ...]
    needed: float
    standings: tuple[CombinedStanding, ...]


def combine(boards: Iterable[BoardRanking]) -> tuple[CombinedBoard, ...]:
    """The combined boards of a run, the widest first."""
    families: dict[tuple[str, ...], list[BoardRanking]] = {}
    for ranked in boards:
        if ranked.standings:
            held = ranked.board
            family = (held.policy, held.variant, held.target, ranked.metric or "")
            families.setdefault(family, []).append(ranked)
    found = []
    for members in families.values():
        widths = {s.bits for ranked in members for s in ranked.standings}
        for bits in sorted(widths, key=width_order):
            if (board := _combined(members, bits)) is not None:
                found.append(board)
    return tuple(found)


def _combined(members: Sequence[BoardRanking], bits: str) -> CombinedBoard | None:
    """The combined board of a width; None where workloads or contestants are too few."""
    losses = {
        ranked.board.workload: {
            s.contestant: math.log(s.factor) for s in ranked.standings if s.bits == bits
        }
        for ranked in members
    }
    if len(losses) < len(members):  # one workload at several budgets: no sample of workloads
        return None
    losses = {workload: known for workload, known in losses.items() if known}
    if len(losses) < FEWEST_WORKLOADS:
        return None
    shared = sorted(set.intersection(*(set(known) for known in losses.values())))
    if len(shared) < FEWEST_CONTESTANTS:
        return None
    table = np.array([[known[name] for known in losses.values()] for name in shared])
    title = members[0].board.title.removeprefix(members[0].board.workload).strip(" ·")
    return _board(title, bits, tuple(losses), shared, table)


def _board(
    title: str, bits: str, workloads: tuple[str, ...], names: Sequence[str], table: Floats
) -> CombinedBoard:
    count, size = table.shape
    centred = table - table.mean(axis=0)
    mean = centred.mean(axis=1)
    freedom = (count - 1) * (size - 1)
    variance = float(np.square(centred - mean[:, None]).sum()) / freedom
    order = np.argsort(mean, kind="stable")
    lead = order[0]
    # of a difference of two contestants on a new workload: its own noise and that of the means
    half = reach(freedom) * math.sqrt(2 * variance * (1 + 1 / size))
    one, other = pairs(count)
    gaps = mean[one] - mean[other]
    error = math.sqrt(2 * variance / size)
    seen = np.abs(gaps) / error if error else np.where(gaps == 0, 0.0, np.inf)
    sure = SureOrder.of(count, gaps, holm(two_sided(seen, freedom)))
    standings = tuple(
        CombinedStanding(
            contestant=names[number],
            method=names[number].rsplit("@", 1)[0],
            factor=math.exp(mean[number] - mean[lead]),
            low=math.exp(mean[number] - mean[lead] - (half if number != lead else 0.0)),
            high=math.exp(mean[number] - mean[lead] + (half if number != lead else 0.0)),
            by_workload=tuple(math.exp(x) for x in table[number] - table[lead]),
            best_rank=sure.best(number),
            worst_rank=sure.worst(number),
        )
        for number in order
    )
    return CombinedBoard(title, bits, workloads, math.exp(half), standings)
