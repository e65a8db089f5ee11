"""The arena's default engine: the joint Gaussian, and sets by the expected value of their vote."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantarena.leaderboard.arena.engines.protocols import BoardLine, Engine, Past, meetings
from quantarena.leaderboard.ranking.engines.batch import ORDERS, batch_posterior
from quantarena.leaderboard.ranking.engines.evi import SMALLEST, next_match
from quantarena.leaderboard.ranking.engines.joint import Filter, Joint
from quantarena.leaderboard.ranking.engines.posterior import Posterior
from quantarena.leaderboard.ranking.votes import Vote

SCALE, CENTRE = 25.0 / 3.0, 25.0
"""What a standard deviation of the skills, and their mean, are on the board: as in K-Sort, so that
boards of both engines read alike."""
MOST_READ = 1_200
"""Votes that a board reads in all its orders together: with more, it has fewer orders."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The belief after a number of votes of one board.

    Attributes:
        votes: how many.
        last: the last one; another vote in its place means that one was taken back.
        belief: the filter.
    """

    votes: int
    last: Vote | None
    belief: Filter


class JointMatchmaker:
    """``evi.next_match`` on the belief of the votes so far, kept up to date vote by vote."""

    name = "joint-1"

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def next_set(
        self, past: Past, contestants: Sequence[str], *, size: int, seed: int
    ) -> tuple[str, ...]:
        """See ``Matchmaker``. A pair that is in an open set promises less."""
        belief = among(self._caught_up(past, contestants).read(), contestants)
        if size < SMALLEST:
            return (belief.contestants[int(np.argmax(np.diag(belief.cov)))],)
        busy = meetings(past.open, belief.contestants)
        turn = len(past.votes) + len(past.open)
        return next_match(belief, size, turn=turn, seed=seed, busy=busy)

    def _caught_up(self, past: Past, contestants: Sequence[str]) -> Filter:
        known = self._known.get(past.board)
        names = set(contestants) | {name for vote in past.votes for name in vote.contestants}
        if known is not None:
            count = known.votes
            same = count <= len(past.votes) and (not count or past.votes[count - 1] is known.last)
            if not same or not names <= set(known.belief.contestants):
                names |= set(known.belief.contestants)
                known = None
        if known is None:
            known = _Known(0, None, Joint().start(sorted(names)))
        belief = known.belief
        for vote in past.votes[known.votes :]:
            belief = belief.absorb(vote)
        last = past.votes[-1] if past.votes else None
        self._known[past.board] = _Known(len(past.votes), last, belief)
        return belief


class JointStandings:
    """Means and 95 % intervals of the joint Gaussian, whatever the order of the votes."""

    name = "joint-1"

    def board(self, votes: Sequence[Vote], contestants: Sequence[str]) -> tuple[BoardLine, ...]:
        """See ``Standings``. Scores are relative to the mean of all contestants."""
        names = tuple(contestants)
        orders = max(1, min(ORDERS, MOST_READ // max(len(votes), 1)))
        belief = batch_posterior(Joint(), votes, names, orders=orders)
        count = len(names)
        centring = np.eye(count) - 1 / count
        mean = centring @ belief.mean
        half = 1.96 * np.sqrt(np.maximum(np.diag(centring @ belief.cov @ centring), 0.0))
        above = belief.claims()
        cast = [sum(name in vote.contestants for vote in votes) for name in names]
        order = sorted(range(count), key=lambda n: (not cast[n], -mean[n], names[n]))
        return tuple(
            BoardLine(
                contestant=names[n],
                place=1 + int(above[:, n].sum()),
                mu=CENTRE + SCALE * float(mean[n]),
                low=CENTRE + SCALE * float(mean[n] - half[n]),
                high=CENTRE + SCALE * float(mean[n] + half[n]),
                best_rank=1 + int(above[:, n].sum()),
                worst_rank=count - int(above[n].sum()),
                votes=cast[n],
            )
            for n in order
        )


def among(belief: Posterior, contestants: Sequence[str]) -> Posterior:
    """The belief about some of the contestants alone, in their order."""
    place = {name: number for number, name in enumerate(belief.contestants)}
    seats = np.array([place[name] for name in contestants])
    known = belief.known
    return replace(
        belief,
        contestants=tuple(contestants),
        score=belief.score[seats],
        means=belief.means[:, seats],
        covs=belief.covs[:, seats][:, :, seats],
        known=None if known is None else known[:, seats][:, :, seats],
    )


def joint_engine() -> Engine:
    """The engine that the arena uses."""
    return Engine(JointMatchmaker(), JointStandings())
