import numpy as np
import pytest

from quantarena.leaderboard.ranking.engines.independent import Elo, KSort
from quantarena.leaderboard.ranking.engines.joint import Joint
from quantarena.leaderboard.ranking.engines.posterior import Posterior
from quantarena.leaderboard.ranking.engines.registry import MATCHERS
from quantarena.leaderboard.ranking.simulation.runs import (
    Setup,
    Trace,
    coverage,
    kendall,
    simulate,
)
from quantarena.leaderboard.ranking.simulation.study import Spread, spread, study
from quantarena.leaderboard.ranking.simulation.voters import Regime, cast_vote, skills


def trace(tau, at=None):
    at = np.arange(1, len(tau) + 1) if at is None else np.array(at)
    none = np.zeros(0)
    return Trace(at, np.array(tau), none, none, none, none)


def test_skills_have_the_stated_scale():
    rng = np.random.default_rng(0)
    even = skills(50, Regime(truth="even"), rng)
    assert even.std() == pytest.approx(1.0)
    assert np.ptp(np.diff(np.sort(even))) == pytest.approx(0.0, abs=1e-12)
    assert skills(20_000, Regime(truth="normal"), rng).std() == pytest.approx(1.0, abs=0.03)


def orders(regime, count=4000):
    rng = np.random.default_rng(1)
    skill = np.array([0.3, 0.0, -0.3])
    votes = [cast_vote(("a", "b", "c"), skill, regime, rng, "u") for _ in range(count)]
    return ["".join(name for tier in vote.tiers for name in tier) for vote in votes]


def test_voters_without_noise_never_err_and_random_ones_always_guess():
    assert set(orders(Regime(0.0), 50)) == {"abc"}
    guesses = orders(Regime(0.5, random=1.0))
    assert all(abs(guesses.count(o) / 4000 - 1 / 6) < 0.025 for o in set(guesses))
    assert len(set(guesses)) == 6


def test_noise_is_that_of_one_look():
    # P(a before c) = cdf(0.6 / (sqrt 2 noise)): 0.80 at noise 0.5; half random votes: 0.65.
    seen = orders(Regime(0.5))
    assert np.mean([o.index("a") < o.index("c") for o in seen]) == pytest.approx(0.802, abs=0.02)
    mixed = orders(Regime(0.5, random=0.5))
    assert np.mean([o.index("a") < o.index("c") for o in mixed]) == pytest.approx(0.651, abs=0.025)


@pytest.mark.parametrize("wrong", [{"truth": "odd"}, {"noise": -0.1}, {"random": 1.5}])
def test_impossible_regimes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"truth|noise"):
        Regime(**wrong)


def test_exact_means_for_good():
    assert trace([0.5, 1.0, 0.9, 1.0, 1.0]).exact() == 4
    assert trace([1.0, 1.0]).exact() == 1
    assert trace([1.0, 0.9]).exact() is None
    assert trace([0.5, 1.0, 1.0], at=[10, 20, 30]).exact() == 20
    assert trace([0.5, 0.91, 0.8, 0.93]).first(0.9) == 2
    assert trace([0.5]).first(0.9) is None


def test_medians_count_runs_that_never_got_there_as_late():
    assert spread([5, 3, 9]) == Spread(5.0, 3, 9, 3, 3)
    assert spread([5, None, 9]) == Spread(9.0, 5, None, 2, 3)
    assert spread([5, None, None, 7]) == Spread(None, 5, None, 2, 4)
    assert spread([None, None, 5]) == Spread(None, 5, None, 1, 3)


def test_kendall_counts_ties_as_neither():
    assert kendall(np.array([3.0, 2.0, 1.0]), np.array([9.0, 4.0, 0.0])) == 1.0
    assert kendall(np.array([1.0, 1.0, 1.0]), np.array([9.0, 4.0, 0.0])) == 0.0
    assert kendall(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == -1.0


def test_coverage_is_that_of_differences():
    truth = np.array([1.0, 0.0, -1.0])
    made = Posterior(
        tuple("abc"),
        truth,
        np.ones(1),
        np.array([[1.0, 0.0, -1.0]]),
        np.eye(3)[None] * 0.01,
        prior_var=2.0,
    )
    assert coverage(made, truth + 7.0) == 1.0
    assert coverage(made, truth * 1.5) == 0.0
    stretched = Posterior(
        made.contestants, truth, made.weights, made.means * 8.0, made.covs, prior_var=None
    )
    assert coverage(stretched, truth) == 1.0


def test_runs_are_equal_for_equal_seeds_only():
    setup = Setup(8, 4, 20, Regime(0.5))
    one, two, other = (simulate(KSort(), MATCHERS["ksort"], setup, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.tau, two.tau)
    assert not np.array_equal(one.tau, other.tau)


def test_without_noise_the_joint_gaussian_is_soon_exact_for_good():
    setup = Setup(20, 4, 45, Regime(0.0), looks=45)
    runs = [simulate(Joint(), MATCHERS["value"], setup, seed) for seed in range(3)]
    assert all(run.exact() is not None and run.exact() <= 30 for run in runs)
    assert not any(run.wrong.any() for run in runs)


def test_the_joint_gaussian_needs_fewer_looks_than_elo():
    joint = study("joint", Setup(16, 4, 60, Regime(0.3), looks=30), range(3))
    elo = study("elo", Setup(16, 2, 600, Regime(0.3), every=5, looks=0), range(3))
    assert joint.tau[0].median * joint.views * 2 < elo.tau[0].median * elo.views
    assert elo.coverage is None
    assert joint.false_runs == 0


def test_runs_of_elo_are_measured_where_asked():
    found = simulate(Elo(), MATCHERS["random"], Setup(6, 2, 25, Regime(0.1), 10, 0), 0)
    assert found.at.tolist() == [10, 20, 25]
    assert found.looked.tolist() == [25]
    assert not len(found.covered)
