import numpy as np
import pytest

from quantarena.leaderboard.ranking.engines.exact_order import add_relations, no_order
from quantarena.leaderboard.ranking.engines.joint import Joint
from quantarena.leaderboard.ranking.engines.posterior import posterior
from quantarena.leaderboard.ranking.engines.registry import MATCHERS
from quantarena.leaderboard.ranking.simulation.runs import Setup, simulate
from quantarena.leaderboard.ranking.simulation.voters import Regime, cast_vote
from quantarena.leaderboard.ranking.votes import Vote

NAMES = tuple("abcdefgh")
FEW = Joint(noises=(0.1, 0.5, 1.5), shares=(0.0, 0.5, 0.97))


def cast(count, regime, *, votes, size=4, seed=0, judge="j"):
    rng = np.random.default_rng(seed)
    skill = np.linspace(1.5, -1.5, count)
    made = []
    for number in range(votes):
        seats = rng.choice(count, size, replace=False)
        vote = cast_vote([NAMES[n] for n in seats], skill[seats], regime, rng, f"u{number}")
        made.append(Vote(vote.unit, vote.contestants, vote.tiers, judge))
    return made


def test_replay_gives_equal_results():
    votes = cast(6, Regime(0.5), votes=40)
    one, two = posterior(Joint(), votes, NAMES[:6]), posterior(Joint(), votes, NAMES[:6])
    assert np.array_equal(one.mean, two.mean)
    assert np.array_equal(one.cov, two.cov)
    assert np.array_equal(one.better(), two.better())


def test_absorbing_a_vote_leaves_the_engine_before_it_as_it_was():
    votes = cast(6, Regime(0.5), votes=12)
    running = FEW.start(NAMES[:6])
    for vote in votes[:-1]:
        running = running.absorb(vote)
    before = running.read()
    running.absorb(votes[-1])
    assert np.array_equal(running.read().mean, before.mean)
    assert running.read().random_share == before.random_share


@pytest.mark.parametrize("partial", [False, True])
def test_names_and_display_order_change_nothing(partial):
    rng = np.random.default_rng(3)
    votes = []
    for number in range(25):
        seats = [NAMES[n] for n in rng.choice(6, 4, replace=False)]
        votes.append(Vote(f"u{number}", tuple(seats), ((seats[0],), tuple(seats[1:])), "", partial))
    new = dict(zip(NAMES[:6], rng.permutation(list("uvwxyz")).tolist(), strict=True))
    renamed = [
        Vote(
            vote.unit,
            tuple(new[name] for name in vote.contestants[::-1]),
            tuple(tuple(new[name] for name in tier[::-1]) for tier in vote.tiers),
            "",
            partial,
        )
        for vote in votes
    ]
    one = posterior(FEW, votes, NAMES[:6])
    two = posterior(FEW, renamed, tuple(sorted(new.values())))
    place = [sorted(new.values()).index(new[name]) for name in NAMES[:6]]
    assert two.mean[place] == pytest.approx(one.mean, abs=1e-6)
    assert two.cov[np.ix_(place, place)] == pytest.approx(one.cov, abs=1e-6)


def test_noise_and_share_are_found_by_evidence():
    quiet = posterior(Joint(), cast(8, Regime(0.15), votes=150), NAMES)
    loud = posterior(Joint(), cast(8, Regime(1.2), votes=150), NAMES)
    mixed = posterior(Joint(), cast(8, Regime(0.15, random=0.5), votes=150), NAMES)
    assert quiet.noise < 0.3 < 0.8 < loud.noise < 2.0
    assert quiet.random_share["j"] < 0.1
    assert 0.3 < mixed.random_share["j"] < 0.7


def test_each_judge_has_a_share():
    good = cast(8, Regime(0.2), votes=60, seed=1, judge="good")
    bad = cast(8, Regime(0.2, random=1.0), votes=60, seed=2, judge="bad")
    both = [vote for pair in zip(good, bad, strict=True) for vote in pair]
    found = posterior(Joint(), both, NAMES)
    assert found.random_share["good"] < 0.15
    assert found.random_share["bad"] > 0.7
    assert np.argsort(-found.score).tolist() == list(range(8))


def test_exact_votes_are_known_to_be_exact():
    found = posterior(Joint(), cast(8, Regime(0.0), votes=60), NAMES)
    assert np.argsort(-found.score).tolist() == list(range(8))
    assert found.better()[0, 7] > 0.9999
    claims = found.claims()
    assert claims[np.triu_indices(8, 1)].sum() >= 18
    assert not np.tril(claims).any()


def test_repeating_a_vote_of_an_exact_judge_adds_nothing():
    order = add_relations(no_order(4), np.array([[0, 1], [1, 2], [2, 3]]))
    assert np.exp(order.log_mass) == pytest.approx(1 / 24, rel=0.02)
    again = add_relations(order, np.array([[0, 2], [0, 3], [1, 2]]))
    assert np.array_equal(again.mean, order.mean)
    assert again.log_mass == order.log_mass
    assert add_relations(order, np.array([[3, 0]])) is None
    # The normal scores of four draws are 1.03 and 0.30.
    assert order.mean == pytest.approx([1.03, 0.30, -0.30, -1.03], abs=0.02)


def test_only_cover_relations_are_kept():
    order = no_order(4)
    for pair in [[0, 3], [0, 2], [0, 1], [1, 2], [2, 3]]:
        order = add_relations(order, np.array([pair]))
    assert sorted(map(tuple, order.pairs.tolist())) == [(0, 1), (1, 2), (2, 3)]


def test_best_of_four_leaves_the_others_equal_but_not_tied():
    names = NAMES[:4]
    picked = [Vote(f"u{n}", names, (("a",), ("b", "c", "d")), "", True) for n in range(6)]
    tied = [Vote(f"u{n}", names, (("a",), ("b", "c", "d"))) for n in range(6)]
    open_, closed = posterior(Joint(), picked, names), posterior(Joint(), tied, names)
    assert open_.mean[1:] == pytest.approx([open_.mean[1]] * 3, abs=1e-6)
    assert open_.mean[0] > open_.mean[1]
    # A tie says that they are alike; a pick of the best says nothing of the others.
    assert closed.spread[1, 2] < 0.6 * open_.spread[1, 2]


@pytest.mark.parametrize("margin", [0.0, 0.25, 0.5])
def test_ties_change_neither_the_scale_nor_the_noise(margin):
    rng, names = np.random.default_rng(1), NAMES
    skill = np.linspace(1.5, -1.5, 8)
    votes = []
    for number in range(300):
        seats = rng.permutation(8)[:4]
        looks = skill[seats] + 0.5 * rng.normal(size=4)
        tiers = []
        for place in np.argsort(-looks):
            if tiers and looks[tiers[-1][0]] - looks[place] < margin:
                tiers[-1].append(place)
            else:
                tiers.append([place])
        named = tuple(tuple(names[seats[place]] for place in tier) for tier in tiers)
        votes.append(Vote(f"u{number}", tuple(names[n] for n in seats), named, "j"))
    found = posterior(Joint(), votes, names)
    slope = np.polyfit(skill, found.mean, 1)[0]
    assert 0.7 < slope < 1.4
    assert found.noise / slope == pytest.approx(0.5, abs=0.1)
    assert found.random_share["j"] < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_random_voters_are_believed_by_nobody(seed):
    setup = Setup(10, 4, 120, Regime(0.5, random=1.0), every=10, looks=1)
    trace = simulate(Joint(), MATCHERS["value"], setup, seed)
    assert len(trace.wrong) == 120
    assert trace.wrong.sum() == 0
    assert trace.right.sum() == 0


def test_random_voters_do_fool_an_engine_that_trusts_them():
    # The grid's upper end is what protects: without it the same votes separate somebody.
    setup = Setup(10, 4, 200, Regime(0.5, random=1.0), every=50, looks=5)
    fooled = Joint(noises=(0.3,), shares=(0.0,), bounds=False)
    traces = [simulate(fooled, MATCHERS["value"], setup, seed) for seed in range(3)]
    assert sum(trace.wrong.any() for trace in traces) >= 1


def test_intervals_cover():
    shares = []
    for truth in ("even", "normal"):
        for seed in range(4):
            setup = Setup(16, 4, 80, Regime(0.5, truth=truth), every=80, looks=20)
            shares.append(simulate(Joint(), MATCHERS["value"], setup, seed).covered)
    assert 0.88 <= np.mean(shares) <= 0.995


def test_a_stranger_in_a_vote_is_refused():
    with pytest.raises(ValueError, match="z, which is not among the contestants"):
        posterior(Joint(), [Vote("u", ("a", "z"), (("a",), ("z",)))], ("a", "b"))
    with pytest.raises(ValueError, match="listed twice"):
        posterior(Joint(), [], ("a", "a"))
