import importlib

import numpy as np
import pytest
from scipy.stats import kendalltau

from quantarena.leaderboard.ranking.engines import independent
from quantarena.leaderboard.ranking.engines.independent import Elo, KSort, TrueSkill
from quantarena.leaderboard.ranking.engines.plackett_luce import PlackettLuce
from quantarena.leaderboard.ranking.engines.posterior import posterior
from quantarena.leaderboard.ranking.engines.registry import DEFAULT, ENGINES, OWN_MATCHER
from quantarena.leaderboard.ranking.ksort import DEFAULT_RULES, rate
from quantarena.leaderboard.ranking.votes import Vote

NAMES = tuple("abcdef")


def order(*tiers, unit="u", partial=False):
    names = tuple("".join(tiers))
    return Vote(unit, names, tuple(tuple(tier) for tier in tiers), "j", partial)


ODD_LOGS = {
    "none": [],
    "one contestant": [order("a")],
    "all tied": [order("abcd", unit=f"u{n}") for n in range(20)],
    "all unordered": [order("abcd", partial=True)],
    "ties everywhere": [order("ab", "cd"), order("a", "bc", "d"), order("abc", "d")] * 4,
    "islands": [order("a", "b"), order("c", "d")] * 6,
    "ragged": [order("a", "b", "c", "d", "e", "f"), order("f", "a"), order("b", "cd", "e")] * 3,
    "circle": [order("a", "b"), order("b", "c"), order("c", "a")] * 5,
    "whole": [order(*"abcdef")] * 12,
}


@pytest.mark.parametrize("log", ODD_LOGS)
@pytest.mark.parametrize("engine", ENGINES)
def test_odd_logs_give_finite_symmetric_positive_beliefs(engine, log):
    found = posterior(ENGINES[engine](), ODD_LOGS[log], NAMES)
    claims = found.claims()
    assert np.all(np.isfinite(found.score))
    assert not (claims & claims.T).any()
    assert not np.diag(claims).any()
    if not len(found.weights):
        assert not claims.any()
        return
    assert found.cov == pytest.approx(found.cov.T, abs=1e-9)
    assert np.linalg.eigvalsh(found.cov).min() > -1e-9
    assert np.diag(found.cov).min() > 0
    better = found.better()
    assert better + better.T == pytest.approx(np.ones((6, 6)))
    assert found.weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_contestants_that_nobody_compared_are_not_claimed(engine):
    found = posterior(ENGINES[engine](), ODD_LOGS["islands"], NAMES)
    claims = found.claims()
    assert not claims[4:].any()
    assert not claims[:, 4:].any()


@pytest.mark.parametrize("engine", ["joint", "ksort", "trueskill", "elo"])
def test_all_tied_stay_level(engine):
    found = posterior(ENGINES[engine](), ODD_LOGS["all tied"], NAMES)
    assert np.ptp(found.score[:4]) == pytest.approx(0, abs=1e-6)
    assert not found.claims().any()


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_contestant_and_one(engine, count):
    found = posterior(ENGINES[engine](), [], NAMES[:count])
    assert len(found.score) == count
    assert found.claims().shape == (count, count)


def noisy_votes(count=60, seed=0):
    rng = np.random.default_rng(seed)
    votes = []
    for number in range(count):
        seats = rng.choice(6, 4, replace=False)
        looks = -seats * 0.8 + rng.normal(size=4)
        tiers = tuple((NAMES[n],) for n in seats[np.argsort(-looks)])
        votes.append(Vote(f"u{number}", tuple(NAMES[n] for n in seats), tiers))
    return votes


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_finds_planted_skills_and_replays_equally(engine):
    votes = noisy_votes()
    found = posterior(ENGINES[engine](), votes, NAMES)
    assert kendalltau(found.score, -np.arange(6)).statistic > 0.8
    assert np.array_equal(found.score, posterior(ENGINES[engine](), votes, NAMES).score)


def test_repaired_ksort_is_the_rating_of_the_leaderboard():
    votes = noisy_votes(20)
    found, known = posterior(KSort(), votes, NAMES), rate(votes, NAMES)
    assert found.score == pytest.approx([known[name].mu for name in NAMES])
    assert np.sqrt(np.diag(found.cov)) == pytest.approx([known[name].sigma for name in NAMES])


def test_published_ksort_freezes_whom_an_upset_meets():
    upset = [order(*"abcdef")] * 6 + [order(*"fedcba")]
    published = posterior(KSort(published=True), upset, NAMES)
    repaired = posterior(KSort(), upset, NAMES)
    assert np.diag(published.cov).min() < 1e-2 * np.diag(repaired.cov).min()
    assert published.score == pytest.approx(
        published.mean - DEFAULT_RULES.eta * np.sqrt(np.diag(published.cov))
    )


def test_elo_moves_by_its_step_and_keeps_the_sum():
    found = posterior(Elo(), [order("a", "b")], NAMES)
    assert found.score[:2].tolist() == [1516.0, 1484.0]
    assert posterior(Elo(), noisy_votes(), NAMES).score.sum() == pytest.approx(6 * 1500)
    with pytest.raises(ValueError, match="without uncertainty"):
        found.better()


def test_plackett_luce_resamples_units_not_votes():
    votes = noisy_votes(24)
    clustered = [Vote(f"u{n // 8}", v.contestants, v.tiers) for n, v in enumerate(votes)]
    alone = posterior(PlackettLuce(resamples=40), votes, NAMES)
    joined = posterior(PlackettLuce(resamples=40), clustered, NAMES)
    assert alone.resamples.shape == (40, 6)
    assert len({tuple(row) for row in joined.resamples.round(9)}) < 11
    assert joined.score == pytest.approx(alone.score)


@pytest.mark.parametrize(("engine", "package"), [(TrueSkill, "trueskill"), (PlackettLuce, "choix")])
def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch, engine, package):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(independent, "importlib", type("I", (), {"import_module": absent}))
    with pytest.raises(ImportError, match=rf"{package} is not .*: pip install 'quantarena\[ran"):
        engine().start(NAMES)


def test_the_default_is_the_joint_gaussian():
    assert DEFAULT == "joint"
    assert set(OWN_MATCHER) == set(ENGINES)
    assert importlib.import_module("trueskill")
