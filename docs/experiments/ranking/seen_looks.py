"""How near an order can get at all: a judge who says what each look showed, and not only the order.

    python docs/experiments/ranking/seen_looks.py

A vote of K images tells the order of K noisy looks. Here the looks themselves are told, with the
deviation of their noise, to an ideal reader, who knows that skills are N(0, 1): each contestant's
posterior is Gaussian and exact, and its mean is the best guess. No engine that sees orders can be
nearer on average with the same looks. Looks are spread evenly, or the next one goes where it lowers
the chance of misordered pairs most. The seeds are those of docs/ranking.md. It takes a minute.
"""

import argparse

import numpy as np

from quantarena.leaderboard.ranking.simulation.runs import kendall
from quantarena.leaderboard.ranking.simulation.voters import TRUTHS, Regime, skills

MODELS, NOISE = 50, 0.5
POINTS = ((4, 170), (4, 420), (8, 75), (8, 230))
"""Sizes and numbers of votes at which the order is looked at."""


def next_look(mean: np.ndarray, var: np.ndarray) -> int:
    """The contestant whose look lowers the misordered pairs most.

    The chance that a pair is misordered falls with its variance at a rate of about the density of
    a difference of zero over that variance's root.
    """
    spread = var[:, None] + var[None, :]
    weight = np.exp(-0.5 * np.subtract.outer(mean, mean) ** 2 / spread) / spread
    np.fill_diagonal(weight, 0.0)
    return int((weight.sum(axis=1) * var**2 / (var + NOISE**2)).argmax())


def run(truth: str, seed: int, *, chosen: bool) -> dict[int, float]:
    """Kendall's tau after each number of looks of ``POINTS``."""
    rng = np.random.default_rng(seed)
    skill = skills(MODELS, Regime(NOISE, truth=truth), rng)
    mean, var = np.zeros(MODELS), np.ones(MODELS)
    wanted = {size * votes for size, votes in POINTS}
    found = {}
    for turn in range(max(wanted)):
        who = next_look(mean, var) if chosen else turn % MODELS
        gain = var[who] / (var[who] + NOISE**2)
        mean[who] += gain * (skill[who] + NOISE * rng.normal() - mean[who])
        var[who] *= 1.0 - gain
        if turn + 1 in wanted:
            found[turn + 1] = kendall(mean, skill)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    args = parser.parse_args()
    heads = [f"K = {size}, {votes} votes" for size, votes in POINTS]
    print(f"| skills | looks | {' | '.join(heads)} |")
    print("|---|---|" + "---|" * len(heads))
    for truth in TRUTHS:
        for chosen in (False, True):
            seeds = range(args.first, args.first + args.runs)
            runs = [run(truth, seed, chosen=chosen) for seed in seeds]
            cells = []
            for size, votes in POINTS:
                tau = np.array([one[size * votes] for one in runs])
                cells.append(f"{np.median(tau):.3f} ({np.count_nonzero(tau >= 0.95)})")
            print(f"| {truth} | {'chosen' if chosen else 'even'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
