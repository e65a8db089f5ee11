"""The engines and the ways to choose matches, by name."""

from collections.abc import Callable, Mapping

import numpy as np

from quantarena.leaderboard.ranking import matchmaking
from quantarena.leaderboard.ranking.engines import evi
from quantarena.leaderboard.ranking.engines.independent import Elo, KSort, TrueSkill
from quantarena.leaderboard.ranking.engines.joint import Joint
from quantarena.leaderboard.ranking.engines.plackett_luce import PlackettLuce
from quantarena.leaderboard.ranking.engines.posterior import Engine, Posterior
from quantarena.leaderboard.ranking.ksort import Rating
from quantarena.leaderboard.ranking.votes import Floats

Matcher = Callable[[Posterior, Floats, int, int], tuple[str, ...]]
"""Chooses the next match from the belief, the (N, N) counts of comparisons, K and the turn."""

DEFAULT = "joint"
ENGINES: Mapping[str, Callable[[], Engine]] = {
    "joint": Joint,
    "ksort": KSort,
    "ksort-published": lambda: KSort(published=True),
    "trueskill": TrueSkill,
    "elo": Elo,
    "plackett-luce": PlackettLuce,
}


def _value(posterior: Posterior, met: Floats, size: int, turn: int) -> tuple[str, ...]:
    return evi.next_match(posterior, size, turn=turn)


def _near(posterior: Posterior, met: Floats, size: int, turn: int) -> tuple[str, ...]:
    return _ksort(posterior, met, size, turn, printed=False)


def _printed(posterior: Posterior, met: Floats, size: int, turn: int) -> tuple[str, ...]:
    return _ksort(posterior, met, size, turn, printed=True)


def _ksort(
    posterior: Posterior, met: Floats, size: int, turn: int, *, printed: bool
) -> tuple[str, ...]:
    names, sigma = posterior.contestants, np.sqrt(np.diag(posterior.cov))
    ratings = {
        name: Rating(float(mu), float(deviation))
        for name, mu, deviation in zip(names, posterior.mean, sigma, strict=True)
    }
    return matchmaking.next_match(names, ratings, met, size=size, seed=turn, printed=printed)


def _random(posterior: Posterior, met: Floats, size: int, turn: int) -> tuple[str, ...]:
    rng, names = np.random.default_rng([turn, 1]), posterior.contestants
    drawn = rng.choice(len(names), min(size, len(names)), replace=False)
    return tuple(names[number] for number in sorted(drawn))


MATCHERS: Mapping[str, Matcher] = {
    "value": _value,
    "ksort": _near,
    "ksort-printed": _printed,
    "random": _random,
}
OWN_MATCHER: Mapping[str, str] = {
    "joint": "value",
    "ksort": "ksort",
    "ksort-published": "ksort",
    "trueskill": "ksort",
    "elo": "random",
    "plackett-luce": "random",
}
"""How each engine is used where nothing else is said. Elo and Plackett-Luce give no uncertainty,
or only after many fits, so they are matched at random."""
