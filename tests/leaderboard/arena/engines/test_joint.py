import numpy as np
import pytest

from quantarena.leaderboard.arena.engines.joint import JointMatchmaker, JointStandings, among
from quantarena.leaderboard.arena.engines.named import DEFAULT, ENGINES, engine
from quantarena.leaderboard.arena.engines.protocols import Past
from quantarena.leaderboard.ranking.engines.joint import Joint
from quantarena.leaderboard.ranking.engines.posterior import posterior
from quantarena.leaderboard.ranking.votes import Vote

NAMES = tuple(f"m{n}@w4a4" for n in range(6))


def cast(rng, names, number):
    """A vote whose true order is that of the names, with a little noise."""
    looks = {name: NAMES.index(name) + rng.normal(0, 0.5) for name in names}
    order = sorted(names, key=looks.__getitem__)
    return Vote(f"p{number % 9}", tuple(names), tuple((name,) for name in order), "judge")


def voted(count, seed=0, names=NAMES, size=4):
    rng = np.random.default_rng(seed)
    maker, votes = JointMatchmaker(), []
    for number in range(count):
        chosen = maker.next_set(Past("board", votes), names, size=size, seed=number)
        votes.append(cast(rng, chosen, number))
    return votes


def test_votes_on_chosen_sets_bring_the_order_back():
    lines = JointStandings().board(voted(40), NAMES)
    assert [line.contestant for line in lines] == list(NAMES)
    assert lines[0].worst_rank < lines[-1].best_rank
    assert all(line.low < line.mu < line.high for line in lines)
    assert np.mean([line.mu for line in lines]) == pytest.approx(25.0)


def test_the_order_of_votes_does_not_matter():
    votes = voted(20)
    standings = JointStandings()
    assert standings.board(votes, NAMES) == standings.board(votes[::-1], NAMES)


def test_nobody_voted_on_comes_last_and_claims_nothing():
    lines = JointStandings().board(voted(12, names=NAMES[:5]), NAMES)
    assert lines[-1].contestant == NAMES[5]
    assert lines[-1].votes == 0
    assert (lines[-1].best_rank, lines[-1].worst_rank) == (1, 6)
    empty = JointStandings().board([], NAMES)
    assert {(line.place, line.votes) for line in empty} == {(1, 0)}


def test_random_voters_are_believed_nothing():
    rng = np.random.default_rng(3)
    votes = []
    for number in range(120):
        names = tuple(str(name) for name in rng.choice(NAMES, 4, replace=False))
        votes.append(Vote(f"p{number % 9}", names, tuple((n,) for n in names), "bot"))
    lines = JointStandings().board(votes, NAMES)
    assert all((line.best_rank, line.worst_rank) == (1, 6) for line in lines)


def test_a_set_depends_on_its_arguments_only_and_on_what_is_out():
    votes = voted(15)
    past = Past("board", votes)
    first = JointMatchmaker().next_set(past, NAMES, size=3, seed=5)
    warm = JointMatchmaker()
    for count in range(16):
        warm.next_set(Past("board", votes[:count]), NAMES, size=3, seed=count)
    assert warm.next_set(past, NAMES, size=3, seed=5) == first
    other = JointMatchmaker().next_set(Past("board", votes, [first] * 9), NAMES, size=3, seed=5)
    assert set(other) != set(first)


def test_a_vote_that_was_taken_back_is_forgotten():
    votes = voted(10)
    warm = JointMatchmaker()
    warm.next_set(Past("board", votes), NAMES, size=3, seed=1)
    fewer = Past("board", votes[:4] + votes[5:])
    fresh = JointMatchmaker().next_set(fewer, NAMES, size=3, seed=1)
    assert warm.next_set(fewer, NAMES, size=3, seed=1) == fresh


def test_prompts_without_all_methods_and_small_sets():
    past = Past("board", voted(10))
    maker = JointMatchmaker()
    few = NAMES[2:5]
    assert set(maker.next_set(past, few, size=3, seed=0)) == set(few)
    assert len(maker.next_set(past, few, size=1, seed=0)) == 1
    later = (*NAMES, "new@w4a4")
    assert "new@w4a4" in {n for s in range(9) for n in maker.next_set(past, later, size=4, seed=s)}


def test_the_belief_about_some_is_that_about_all():
    belief = posterior(Joint(), voted(10), NAMES)
    part = among(belief, NAMES[3:0:-1])
    assert part.mean == pytest.approx(belief.mean[3:0:-1])
    assert part.better() == pytest.approx(belief.better()[3:0:-1, 3:0:-1])


def test_the_best_of_four_leaves_the_others_unordered():
    best = Vote("p0", NAMES[:4], ((NAMES[0],), NAMES[1:4]), "judge", partial=True)
    lines = {line.contestant: line for line in JointStandings().board([best] * 5, NAMES[:4])}
    others = [lines[name].mu for name in NAMES[1:4]]
    assert max(others) - min(others) < 0.2
    assert lines[NAMES[0]].mu > max(others) + 1


def test_engines_have_names():
    assert DEFAULT in ENGINES
    assert {engine(name).standings.name for name in ENGINES} == {"joint-1", "ksort-1"}
    with pytest.raises(KeyError, match="choose joint or ksort"):
        engine("absent")
