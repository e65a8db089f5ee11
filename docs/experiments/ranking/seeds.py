"""Prints how a board's ranks hold over its seeds: all together, and each seed alone.

    python docs/experiments/ranking/seeds.py results/quick --bits w4a4

The first table of a model has the ranks that all seeds together leave possible. The others say how
far each seed alone would have been trusted: its own rank range, and how many of the pairs that it
separates the other seeds separate the other way round.
"""

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from quantarena.bench.schema import Row
from quantarena.leaderboard.ranking.board_ranking import BoardRanking
from quantarena.leaderboard.ranking.ranking import rank_board
from quantarena.leaderboard.ranking.read_results import by_board, load_rows
from quantarena.leaderboard.ranking.standings import Standing


def at(ranked: BoardRanking, bits: str) -> tuple[Standing, ...]:
    """The standings of one width, the nearest first."""
    return tuple(s for s in ranked.standings if s.bits == bits)


def span(standing: Standing | None) -> str:
    """The possible ranks."""
    if standing is None:
        return "-"
    low, high = standing.best_rank, standing.worst_rank
    return f"{low}" if low == high else f"{low}-{high}"


def claims(standings: Sequence[Standing]) -> set[tuple[str, str]]:
    """The separated pairs, the nearer first."""
    place = {s.contestant: n for n, s in enumerate(standings)}
    tied = {frozenset((s.contestant, t.contestant)) for s in standings for t in s.ties}
    pairs = combinations(sorted(place, key=lambda name: place[name]), 2)
    return {pair for pair in pairs if frozenset(pair) not in tied}


def table(rows: Sequence[Row], folder: Path, bits: str) -> str:
    """The table of one model, and what seeds say of each other."""
    (board, _), *others = by_board(rows).items()
    assert not others, "one board at a time"
    seeds = sorted({row.cell.seed for row in rows})
    whole = at(rank_board(board, rows, folder), bits)
    alone = {
        seed: at(rank_board(board, [r for r in rows if r.cell.seed == seed], folder), bits)
        for seed in seeds
    }
    lines = [
        "| method | ranks | typical loss, of the nearest | images won | "
        + " | ".join(f"seed {seed} alone" for seed in seeds)
        + " |",
        "|---" * (4 + len(seeds)) + "|",
    ]
    for s in whole:
        low, high = s.span
        factor = f"{s.factor:.2f} [{low:.2f}, {high:.2f}]" if s.factor != 1 else "1"
        single = [
            span(next((x for x in alone[n] if x.contestant == s.contestant), None)) for n in seeds
        ]
        cells = [s.method, span(s), factor, f"{s.wins:.0%}", *single]
        lines.append(f"| {' | '.join(cells)} |")
    found = {seed: claims(alone[seed]) for seed in seeds}
    turned = sum(
        (b, a) in found[other]
        for one, other in combinations(seeds, 2)
        for a, b in found[one]
    )  # fmt: skip
    counts = ", ".join(f"{len(found[seed])} pairs on seed {seed}" for seed in seeds)
    both = sum(len(found[one] & found[other]) for one, other in combinations(seeds, 2))
    lines.append(
        f"\n{len(claims(whole))} of {len(whole) * (len(whole) - 1) // 2} pairs are separated by "
        f"all seeds together;\n{counts}. Of pairs of seeds, {both} agree on a separation and "
        f"{turned} contradict each other."
    )
    return "\n".join(lines)


def main() -> None:
    """Print the table of every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", default="w4a4")
    given = parser.parse_args()
    rows = [row for row in load_rows(given.folder).rows if row.cell.bits in (given.bits, "fp")]
    for workload in dict.fromkeys(row.cell.workload for row in rows):
        own = [row for row in rows if row.cell.workload == workload]
        print(f"**{workload}, {given.bits}**\n\n{table(own, given.folder, given.bits)}\n")


if __name__ == "__main__":
    main()
