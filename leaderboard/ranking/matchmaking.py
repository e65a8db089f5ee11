"""Whom to compare next. Needed where a look costs something: people and slow judges."""

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
) -> tuple[str, ...]:
    """The least-compared contestant and the opponents it should meet.

    Opponents are the best by ``U = -|S_i - S_q| + alpha * sqrt(ln n / n_iq)``: near in
    conservative score S, or rarely met. The printed formula adds the distance instead, which
    seeks the most different opponents and does not converge.

    Args:
        names: contestants; their positions index ``met``.
        ratings: the present belief.
        met: (N, N) how often each pair was compared, symmetric.
        size: K; all contestants where there are fewer.
        alpha: weight of exploration.
        rules: constants of the rating.
        seed: breaks ties.
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
    benefit = -np.abs(score - score[pivot]) + bonus
    # Among opponents never met, all at infinity, the near ones come first.
    order = np.lexsort((jitter, np.abs(score - score[pivot]), -benefit))
    chosen = [int(number) for number in order if number != pivot][: size - 1]
    return tuple(names[number] for number in [pivot, *chosen])
