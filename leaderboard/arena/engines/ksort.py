"""K-Sort's rating and matchmaking as an engine of the arena, the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from quantarena.leaderboard.arena.engines.protocols import BoardLine, Engine, Past, meetings
from quantarena.leaderboard.inference.sign_flips import FEWEST
from quantarena.leaderboard.ranking.intervals import (
    estimate,
    separations,
    tie_groups,
)
from quantarena.leaderboard.ranking.ksort import DEFAULT_RULES, Rating, Rules, update
from quantarena.leaderboard.ranking.matchmaking import next_match
from quantarena.leaderboard.ranking.votes import Floats, Vote, tabulate


@dataclass(slots=True)
class _Known:
    """K-Sort ratings and meetings after a number of votes of one board."""

    votes: int = 0
    last: Vote | None = None
    index: dict[str, int] = field(default_factory=dict)
    mu: Floats = field(default_factory=lambda: np.empty(0))
    var: Floats = field(default_factory=lambda: np.empty(0))
    met: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    def seats(self, names: Sequence[str], rules: Rules) -> list[int]:
        """Positions of contestants; new ones get the rating of a beginner."""
        fresh = [name for name in names if name not in self.index]
        for name in fresh:
            self.index[name] = len(self.index)
        if fresh:
            self.mu = np.append(self.mu, np.full(len(fresh), rules.mu))
            self.var = np.append(self.var, np.full(len(fresh), rules.sigma**2))
            self.met = np.pad(self.met, (0, len(fresh)))
        return [self.index[name] for name in names]


class KSortMatchmaker:
    """``next_match`` on the K-Sort ratings of the votes so far, kept up to date vote by vote."""

    name = "ksort-1"

    def __init__(self, rules: Rules = DEFAULT_RULES) -> None:
        self._rules = rules
        self._known: dict[str, _Known] = {}

    def next_set(
        self, past: Past, contestants: Sequence[str], *, size: int, seed: int
    ) -> tuple[str, ...]:
        """See ``Matchmaker``. An open set counts as met, so that voters get different ones."""
        known = self._caught_up(past)
        seats = known.seats(contestants, self._rules)
        ratings = {
            name: Rating(float(known.mu[seat]), float(np.sqrt(known.var[seat])))
            for name, seat in zip(contestants, seats, strict=True)
        }
        met = known.met[np.ix_(seats, seats)]
        met += meetings(past.open, contestants)
        return next_match(contestants, ratings, met, size=size, rules=self._rules, seed=seed)

    def _caught_up(self, past: Past) -> _Known:
        known = self._known.get(past.board)
        count = known.votes if known else 0
        # A vote that was taken back shifts those behind it: then everything is rated again.
        whole = count <= len(past.votes) and (not count or past.votes[count - 1] is known.last)  # type: ignore[union-attr]
        if known is None or not whole:
            known = self._known[past.board] = _Known()
        for vote in past.votes[known.votes :]:
            seats = known.seats(vote.contestants, self._rules)
            outcome = tabulate([vote], vote.contestants).outcome[0]
            known.mu[seats], known.var[seats] = update(
                known.mu[seats], known.var[seats], outcome, self._rules
            )
            _count(known.met, seats)
            known.last = vote
        known.votes = len(past.votes)
        return known


class KSortStandings:
    """K-Sort scores with intervals by a bootstrap over prompts, as on the leaderboard page."""

    name = "ksort-1"

    def __init__(self, *, seed: int = 0, resamples: int = 300) -> None:
        self._seed, self._resamples = seed, resamples

    def board(self, votes: Sequence[Vote], contestants: Sequence[str]) -> tuple[BoardLine, ...]:
        """See ``Standings``.

        Contestants that nobody voted on come last. They have the prior's width as interval, and
        so has everybody while fewer than six prompts were voted on.
        """
        ballots = tabulate(votes, contestants)
        spread = estimate(ballots, seed=self._seed, resamples=self._resamples)
        above = separations(spread)
        groups = tie_groups(spread.mu, above)
        cast = np.bincount(ballots.members.ravel(), minlength=len(contestants) + 1)
        half = 1.96 * DEFAULT_RULES.sigma
        # A bootstrap of very few prompts has no width at all: then nothing is known yet.
        known = [bool(n) and spread.units >= FEWEST for n in cast]
        order = sorted(
            range(len(contestants)), key=lambda n: (not cast[n], -spread.mu[n], contestants[n])
        )
        return tuple(
            BoardLine(
                contestant=contestants[n],
                place=1 + int(np.sum(groups < groups[n])),
                mu=float(spread.mu[n]),
                low=float(spread.low[n] if known[n] else spread.mu[n] - half),
                high=float(spread.high[n] if known[n] else spread.mu[n] + half),
                best_rank=1 + int(above[:, n].sum()),
                worst_rank=len(contestants) - int(above[n].sum()),
                votes=int(cast[n]),
            )
            for n in order
        )


def _count(met: Floats, seats: Sequence[int]) -> None:
    """Add one meeting of each pair of seats."""
    met[np.ix_(seats, seats)] += 1.0
    met[seats, seats] -= 1.0


def ksort_engine() -> Engine:
    """K-Sort's rating and matchmaking, the baseline."""
    return Engine(KSortMatchmaker(), KSortStandings())
