"""The choice of the next contestants to compare, for an arena where people vote.

The automatic board compares everything and has no use for it. Where each look costs something, as
with people or slow judges, the next comparison should tell as much as possible.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from quantarena.leaderboard.ranking.ksort import DEFAULT_RULES, Rating, Rules
from quantarena.leaderboard.ranking.votes import Floats


def next_match(
    names: Sequence[str],
    ratings: Mapping[str, Rating],
    met: Floats,
    *,
    size: int = 4,
    alpha: float = 1.0,
    rules: Rules = DEFAULT_RULES,
    seed: int = 0,
    printed: bool = False,
) -> tuple[str, ...]:
    """The least-compared contestant q and the opponents that it should meet, at most ``size``.

    Opponents i have the largest ``U = -|S_i - S_q| + alpha * sqrt(ln n / n_iq)``, where S is the
    conservative score, n the number of comparisons and n_iq those of the pair: they are near in
    score or were rarely met. The paper's formula adds the distance instead of subtracting it,
    which seeks the most different opponents and does not converge.

    Args:
        names: the N contestants, in the order of ``met``.
        ratings: the present rating of each contestant.
        met: (N, N) number of comparisons of each pair, symmetric.
        size: K, contestants per vote; all of them where there are fewer.
        alpha: weight of exploration.
        rules: constants of the rating.
        seed: decides between equals.
        printed: whether the distance is added, as the paper's formula is printed.
    """
    count = len(names)
    if count <= 1:
        return tuple(names)
    jitter = np.random.default_rng(seed).permutation(count)
    pivot = int(np.lexsort((jitter, met.sum(axis=1)))[0])
    score = np.array([ratings[name].conservative(rules) for name in names])
    pairs = met[pivot]
    total = max(float(met.sum()) / 2.0, 1.0)
    bonus = np.full(count, np.inf)
    known = pairs > 0
    bonus[known] = alpha * np.sqrt(np.log(total) / pairs[known])
    distance = np.abs(score - score[pivot]) * (-1.0 if printed else 1.0)
    benefit = bonus - distance
    # Among opponents never met, all at infinity, the near ones come first.
    order = np.lexsort((jitter, distance, -benefit))
    chosen = [int(number) for number in order if number != pivot][: size - 1]
    return tuple(names[number] for number in [pivot, *chosen])
