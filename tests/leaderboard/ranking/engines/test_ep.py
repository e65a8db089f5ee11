import itertools

import numpy as np
import pytest
import trueskill
from scipy.stats import norm

from quantarena.leaderboard.ranking.engines.ep import cut
from quantarena.leaderboard.ranking.engines.joint import Joint
from quantarena.leaderboard.ranking.engines.posterior import posterior
from quantarena.leaderboard.ranking.votes import Vote

SIGMA, BETA = 25 / 3, 25 / 6


def ladder(size):
    rows = np.zeros((size - 1, size))
    rows[np.arange(size - 1), np.arange(size - 1)] = 1
    rows[np.arange(size - 1), np.arange(1, size)] = -1
    return rows


def after_vote(mean, cov, beta, matrix, margin=0.0, tied=None):
    """Means and covariance of skills after a vote."""
    reach = cov @ matrix.T
    inner = matrix @ reach + beta**2 * matrix @ matrix.T
    tied = np.zeros(len(matrix), dtype=bool) if tied is None else np.array(tied)
    found = cut((matrix @ mean)[None], inner[None], np.array([margin]), tied)
    return mean + reach @ found.push[0], cov - reach @ found.shrink[0] @ reach.T, found.log_mass[0]


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_first_vote_from_a_diagonal_start_equals_trueskill(size):
    setting = trueskill.TrueSkill(tau=0.0, draw_probability=0.0)
    rng = np.random.default_rng(size)
    mean, sigma = rng.normal(25, 6, size), rng.uniform(2, 9, size)
    rated = setting.rate([(setting.create_rating(m, s),) for m, s in zip(mean, sigma, strict=True)])
    ours, cov, _ = after_vote(mean, np.diag(sigma**2), BETA, ladder(size))
    assert ours == pytest.approx([group[0].mu for group in rated], abs=2e-3)
    assert np.sqrt(np.diag(cov)) == pytest.approx([group[0].sigma for group in rated], abs=2e-3)


def test_a_tie_equals_trueskills_draw():
    setting = trueskill.TrueSkill(tau=0.0, draw_probability=0.3)
    ratings = [setting.create_rating(22, 3), setting.create_rating(30, 7)]
    rated = setting.rate([(rating,) for rating in ratings], ranks=[0, 0])
    margin = norm.ppf(0.65) * np.sqrt(2) * BETA
    ours, cov, _ = after_vote(
        np.array([22.0, 30.0]), np.diag([9.0, 49.0]), BETA, ladder(2), margin, [True]
    )
    assert ours == pytest.approx([group[0].mu for group in rated], abs=1e-3)
    assert np.sqrt(np.diag(cov)) == pytest.approx([group[0].sigma for group in rated], abs=1e-3)


@pytest.mark.parametrize("tied", [[False] * 3, [True, False, False], [True] * 3])
def test_moments_agree_with_sampling(tied):
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(4, 4))
    cov, mean, margin = factor @ factor.T + np.eye(4), rng.normal(size=4), 0.7
    looks = rng.multivariate_normal(mean, cov, size=400_000)
    gaps = looks @ ladder(4).T
    inside = looks[np.all(np.where(tied, np.abs(gaps) < margin, gaps > margin), axis=1)]
    ours, spread, log_mass = after_vote(mean, cov, 0.0, ladder(4), margin, tied)
    assert np.exp(log_mass) == pytest.approx(len(inside) / len(looks), rel=0.06)
    assert ours == pytest.approx(inside.mean(axis=0), abs=0.05)
    assert np.diag(spread) == pytest.approx(inside.var(axis=0), rel=0.06)


def test_chances_of_all_orders_sum_to_one():
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(4, 4))
    cov, mean = factor @ factor.T + np.eye(4), rng.normal(size=4)
    chances = [
        np.exp(after_vote(mean, cov, 0.5, ladder(4)[:, np.argsort(order)])[2])
        for order in itertools.permutations(range(4))
    ]
    assert sum(chances) == pytest.approx(1.0, abs=0.01)


def exact_differences(orders, beta, share):
    """Posterior mean and variance of skill 0 minus 1 and 1 minus 2, by integration."""
    grid = np.linspace(-6.5, 6.5, 131)
    first, second = np.meshgrid(grid, grid, indexing="ij")
    # Differences of three N(0, 1) have covariance [[2, -1], [-1, 2]]; its inverse is below.
    density = np.exp(-(first**2 + first * second + second**2) / 3.0)
    skill = np.stack([first, np.zeros_like(first), -second])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for order in orders:
        top, middle, last = (skill[number] for number in order)
        look = middle[..., None] + beta * nodes
        above = norm.cdf((top[..., None] - look) / beta)
        below = norm.cdf((look - last[..., None]) / beta)
        chance = (above * below * weights).sum(axis=-1) / np.sqrt(2 * np.pi)
        density = density * ((1 - share) * chance + share / 6.0)
    density /= density.sum()
    means = [(density * d).sum() for d in (first, second)]
    return means, [
        (density * (d - m) ** 2).sum() for d, m in zip((first, second), means, strict=True)
    ]


@pytest.mark.parametrize(
    ("orders", "error"), [([(0, 1, 2)], 0.03), ([(0, 1, 2), (1, 0, 2), (0, 2, 1), (0, 1, 2)], 0.15)]
)
@pytest.mark.parametrize(("beta", "share"), [(0.5, 0.0), (0.5, 0.25), (1.2, 0.5)])
def test_three_contestants_agree_with_brute_force(beta, share, orders, error):
    names = ("a", "b", "c")
    votes = [Vote("u", names, tuple((names[n],) for n in order)) for order in orders]
    engine = Joint(noises=(beta,), shares=(share,), bounds=False)
    found = posterior(engine, votes, names)
    means, variances = exact_differences(orders, beta, share)
    ours = [found.mean[0] - found.mean[1], found.mean[1] - found.mean[2]]
    # The votes are taken in one by one, so errors of the approximation add up, in deviations.
    assert ours == pytest.approx(means, abs=error * np.sqrt(min(variances)))
    assert [found.spread[0, 1], found.spread[1, 2]] == pytest.approx(
        np.sqrt(variances), rel=0.02 + error / 2
    )


def test_extreme_votes_stay_finite():
    mean = np.array([-40.0, 0.0, 40.0, 41.0])
    for margin, tied in [(0.0, None), (1e-9, [True] * 3), (5.0, [True, False, True])]:
        ours, cov, log_mass = after_vote(mean, np.eye(4), 0.05, ladder(4), margin, tied)
        assert np.all(np.isfinite(ours))
        assert np.isfinite(log_mass)
        assert np.all(np.diag(cov) > 0)
