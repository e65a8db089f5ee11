import numpy as np
import pytest

from quantarena.leaderboard.ranking.engines.batch import batch_posterior
from quantarena.leaderboard.ranking.engines.independent import Elo
from quantarena.leaderboard.ranking.engines.joint import Joint
from quantarena.leaderboard.ranking.engines.posterior import posterior
from quantarena.leaderboard.ranking.simulation.voters import Regime, cast_vote
from quantarena.leaderboard.ranking.votes import Vote

NAMES = tuple("abcdef")
FEW = Joint(noises=(0.1, 0.5, 1.5), shares=(0.0, 0.5))


def cast(count):
    rng = np.random.default_rng(0)
    skill = np.linspace(1.5, -1.5, 6)
    votes = []
    for number in range(count):
        seats = rng.choice(6, 4, replace=False)
        shown = [NAMES[n] for n in seats]
        votes.append(cast_vote(shown, skill[seats], Regime(0.6), rng, f"u{number}"))
    return votes


def test_the_order_of_the_log_changes_nothing():
    votes = cast(30)
    rng = np.random.default_rng(1)
    mixed = [
        Vote(
            votes[n].unit,
            tuple(rng.permutation(votes[n].contestants).tolist()),
            tuple(tuple(rng.permutation(tier).tolist()) for tier in votes[n].tiers),
            votes[n].judge,
        )
        for n in rng.permutation(30)
    ]
    one, two = batch_posterior(FEW, votes, NAMES), batch_posterior(FEW, mixed, NAMES)
    assert np.array_equal(one.score, two.score)
    assert np.array_equal(one.cov, two.cov)
    assert one.noise == two.noise
    assert not np.array_equal(
        posterior(FEW, votes, NAMES).score, posterior(FEW, mixed, NAMES).score
    )


def test_it_is_the_mean_of_its_parts():
    votes = cast(12)
    found = batch_posterior(FEW, votes, NAMES, orders=5)
    assert found.score == pytest.approx(found.mean, abs=1e-5)
    assert found.weights.sum() == pytest.approx(1.0)
    assert found.better() + found.better().T == pytest.approx(np.ones((6, 6)))
    # Mixing beliefs that disagree can only widen them.
    alone = [np.trace(posterior(FEW, votes, NAMES).cov)]
    assert np.trace(found.cov) > 0.9 * np.mean(alone)


def test_engines_without_uncertainty_are_averaged_too():
    votes = cast(20)
    found = batch_posterior(Elo(), votes, NAMES, orders=3)
    assert found.score.sum() == pytest.approx(6 * 1500)
    assert not found.claims().any()
    with pytest.raises(ValueError, match="at least one order"):
        batch_posterior(Elo(), votes, NAMES, orders=0)
