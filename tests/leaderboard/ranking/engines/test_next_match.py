import time

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from quantarena.leaderboard.ranking.engines.evi import CHECK_EVERY, next_match, pair_gains
from quantarena.leaderboard.ranking.engines.independent import Elo
from quantarena.leaderboard.ranking.engines.joint import Joint
from quantarena.leaderboard.ranking.engines.posterior import Posterior, posterior
from quantarena.leaderboard.ranking.engines.stopping import stop_rule
from quantarena.leaderboard.ranking.simulation.voters import Regime, cast_vote
from quantarena.leaderboard.ranking.votes import Vote


def belief(mean, var, noise=0.5, prior=2.0):
    mean, names = np.asarray(mean, dtype=float), tuple(f"m{n}" for n in range(len(mean)))
    cov = np.diag(np.broadcast_to(np.asarray(var, dtype=float), mean.shape))
    return Posterior(names, mean, np.ones(1), mean[None], cov[None], prior_var=prior, noise=noise)


@pytest.mark.parametrize("lead", [0.0, 0.4, 1.5])
def test_gain_is_the_fall_of_the_misordered_chance(lead):
    found = pair_gains(belief([lead, 0.0], [0.3, 0.4]))[0, 1]
    s2, look = 0.7, 0.7**2 / (0.7 + 2 * 0.25)
    joint = multivariate_normal(
        [lead, lead], [[s2, look], [look, look + 1e-12]], allow_singular=True
    )
    sd = np.sqrt(s2)
    now = multivariate_normal(0, 1).cdf(-lead / sd)
    # P(difference > 0 > its mean) + P(difference < 0 < its mean), by complement.
    below = joint.cdf([0, 0])
    mean_below = multivariate_normal(0, 1).cdf(-lead / np.sqrt(look))
    after = (mean_below - below) + (now - below)
    assert found == pytest.approx(now - after, abs=2e-4)


def test_near_and_uncertain_pairs_are_chosen():
    close = belief([5.0, 0.2, 0.1, 0.0, -0.1, -6.0], 0.2)
    assert set(next_match(close, 2)) < {"m1", "m2", "m3", "m4"}
    assert set(next_match(close, 4)) == {"m1", "m2", "m3", "m4"}
    vague = belief(np.arange(6) * 3.0, [0.01, 0.01, 0.01, 6.0, 6.0, 0.01])
    assert set(next_match(vague, 2)) == {"m3", "m4"}


def test_what_is_known_is_not_asked_again():
    known = np.zeros((1, 3, 3), dtype=bool)
    known[0, 0, 1] = True
    base = belief([0.1, 0.0, -0.5], 0.5)
    sure = Posterior(
        base.contestants, base.score, base.weights, base.means, base.covs, known, 2.0, 0.5
    )
    assert set(next_match(base, 2)) == {"m0", "m1"}
    assert set(next_match(sure, 2)) != {"m0", "m1"}


def test_checks_are_spread_over_the_ranking():
    var = np.full(40, 0.1)
    var[[7, 15, 21, 38]] = 0.2
    found = belief(-np.arange(40.0), var)
    for turn in (CHECK_EVERY - 1, 3 * CHECK_EVERY - 1):
        places = sorted(int(name[1:]) for name in next_match(found, 4, turn=turn))
        assert places == [7, 15, 21, 38]


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8])
def test_size_and_determinism(size):
    start = Joint().start([f"m{n}" for n in range(12)]).read()
    one = next_match(start, size, turn=3)
    assert len(set(one)) == size
    assert one == next_match(start, size, turn=3)
    assert len({next_match(start, size, turn=turn) for turn in range(8)}) > 4


def test_few_contestants_and_sizes_that_are_not_offered():
    start = Joint().start(["a", "b", "c"]).read()
    assert next_match(start, 4) == ("a", "b", "c")
    for size in (1, 9, 12):
        with pytest.raises(ValueError, match="2 to 8"):
            next_match(start, size)
    with pytest.raises(ValueError, match="without uncertainty"):
        next_match(Elo().start(list("abcdef")).read(), 4)


def test_next_match_of_fifty_takes_at_most_twenty_milliseconds():
    rng = np.random.default_rng(0)
    names = tuple(f"m{n:02d}" for n in range(50))
    skill = rng.normal(size=50)
    running, matching, whole = Joint().start(names), [], []
    for turn in range(40):
        begun = time.process_time()
        found = running.read()
        between = time.process_time()
        shown = next_match(found, 4, turn=turn)
        ended = time.process_time()
        seats = [names.index(name) for name in shown]
        vote = cast_vote(shown, skill[seats], Regime(0.5), rng, "u")
        absorbing = time.process_time()
        running = running.absorb(vote)
        matching.append(ended - between)
        whole.append(ended - begun + time.process_time() - absorbing)
    assert np.median(matching) < 0.020
    assert np.median(whole) < 0.020


def test_stop_rule_separates_ties_and_leaves_open():
    found = belief([3.0, 0.0, 0.001, -0.2], [0.02, 1e-4, 1e-4, 0.05])
    stop = stop_rule(found, 0.1)
    assert stop.separated[0, 1:].all()
    assert stop.tied[1, 2]
    assert stop.tied[2, 1]
    assert not stop.tied[1, 3]
    assert stop.open_pairs == 2
    assert not stop.done
    assert stop_rule(belief([3.0, 0.0], 0.01), 0.1).done
    with pytest.raises(ValueError, match="positive"):
        stop_rule(found, 0.0)


def test_stop_rule_of_engines_without_uncertainty_and_of_few():
    stop = stop_rule(Elo().start(["a", "b", "c"]).read(), 0.1)
    assert stop.open_pairs == 3
    assert stop_rule(Joint().start(["a"]).read(), 0.1).done


def test_a_duel_is_stopped_once_votes_agree():
    votes = [Vote(f"u{n}", ("a", "b"), (("a",), ("b",))) for n in range(40)]
    pairs = [stop_rule(posterior(Joint(), votes[:n], ("a", "b")), 0.2).open_pairs for n in (1, 40)]
    assert pairs == [1, 0]


def test_claims_need_more_than_the_posterior_alone():
    # Two contestants at z = 2.1: the posterior is 98 % sure; the Bayes factor is below 20.
    found = belief([0.21, 0.0], 0.005)
    assert found.better()[0, 1] > 0.975
    assert not found.claims().any()
    assert belief([0.21, 0.0], 0.005, prior=None).claims()[0, 1]
