"""How often the automatic board claims what is not so, and how often it finds what is.

Boards are made up with a known truth: the scores of contestants on prompts are drawn, tested as the
board tests them, and compared with what was planted. It needs numpy and scipy, no model.

    python docs/experiments/ranking/board_claims.py --boards 1000 > claims.md
"""

import argparse

import numpy as np

from quantarena.leaderboard.inference.run_effects import equal_means_over_runs
from quantarena.leaderboard.inference.sign_flips import LEVEL, equal_means, mean_bounds
from quantarena.leaderboard.ranking.votes import Floats

KINDS = ("gauss", "t2", "spread")
"""Noise of a contestant on a prompt: normal; Student's t with two degrees of freedom; normal with a
deviation of its own between 0.2 and 3."""


def scores(rng: np.random.Generator, count: int, shape: tuple[int, ...], kind: str) -> Floats:
    """(N, *shape) scores of equal contestants; the first axis of ``shape`` is the prompt."""
    prompt = rng.normal(size=(shape[0],) + (1,) * (len(shape) - 1))
    size = (count, *shape)
    if kind == "t2":
        return np.asarray(prompt + rng.standard_t(2, size=size))
    spread = rng.uniform(0.2, 3, (count,) + (1,) * len(shape)) if kind == "spread" else 1.0
    return np.asarray(prompt + spread * rng.normal(size=size))


def differences(table: Floats) -> Floats:
    """Of all pairs of contestants, (M, ...)."""
    one, other = np.triu_indices(len(table), 1)
    return np.asarray(table[one] - table[other])


def claimed(rng: np.random.Generator, count: int, size: tuple[int, int], kind: str) -> bool:
    """True where a board of equal contestants separates any pair."""
    table = scores(rng, count, size, kind).mean(axis=2)
    return bool((equal_means(differences(table)) <= 1 - LEVEL).any())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boards", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, boards = np.random.default_rng(given.seed), given.boards

    print(f"Equal contestants: share of {boards} boards with any separation\n")
    print("| contestants | prompts | seeds | " + " | ".join(KINDS) + " |")
    print("|---|---|---|" + "---|" * len(KINDS))
    for count in (8, 36):
        for prompts in (6, 8, 16, 64):
            for seeds in (1, 3):
                row = []
                for kind in KINDS:
                    tried = boards if count == 8 else boards // 4  # large boards take longer
                    claims = [claimed(rng, count, (prompts, seeds), kind) for _ in range(tried)]
                    row.append(f"{np.mean(claims):.3f}")
                print(f"| {count} | {prompts} | {seeds} | " + " | ".join(row) + " |", flush=True)

    shift = np.repeat([0.0, 0.5], 4)
    one, other = np.triu_indices(8, 1)
    apart = shift[one] != shift[other]
    found = [
        (equal_means(differences(scores(rng, 8, (64,), "gauss") + shift[:, None])) <= 0.05)[apart]
        for _ in range(boards)
    ]
    print(f"\nTwo groups of four, half a deviation apart, 64 prompts: {np.mean(found):.3f} of true")
    print("pairs are separated.\n")

    print("| prompts | " + " | ".join(f"interval holds the gap, {k}" for k in KINDS) + " |")
    print("|---|" + "---|" * len(KINDS))
    for prompts in (6, 8, 16, 64):
        row = []
        for kind in KINDS:
            held = 0
            for _ in range(4 * boards):
                low, high = mean_bounds(differences(scores(rng, 2, (prompts,), kind)))
                held += bool(low[0] <= 0 <= high[0])
            row.append(f"{held / (4 * boards):.3f}")
        print(f"| {prompts} | " + " | ".join(row) + " |", flush=True)

    print("\nA run moves a contestant on all its prompts; six contestants\n")
    print("| run effect | prompts | seeds | false, seeds tested | false, prompts alone | found |")
    print("|---|---|---|---|---|---|")
    one, other = np.triu_indices(6, 1)
    shift = np.repeat([0.0, 0.5], 3)[:, None, None]
    for run in (0.0, 0.1, 0.2, 0.5):
        for prompts, seeds in ((16, 5), (64, 5), (64, 8)):
            false = plain = power = 0.0
            for _ in range(boards // 2):
                table = scores(rng, 6, (prompts, seeds), "gauss")
                table = table + run * rng.normal(size=(6, 1, seeds))
                gaps = differences(table)
                false += bool((equal_means_over_runs(gaps) <= 0.05).any())
                plain += bool((equal_means(gaps.mean(axis=2)) <= 0.05).any())
                p = equal_means_over_runs(differences(table + shift))
                power += float((p <= 0.05)[(one < 3) & (other >= 3)].mean())
            values = (x / (boards // 2) for x in (false, plain, power))
            cells = " | ".join(f"{x:.3f}" for x in values)
            print(f"| {run} | {prompts} | {seeds} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
