"""How good the votes of each judge are, and how much the board hangs on them. Nothing is dropped.

The unit is a vote, never a pair: the pairs of one vote are not independent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from quantarena.leaderboard.arena.agreement import ordinal_alpha
from quantarena.leaderboard.arena.events import (
    DESTROYED,
    INTACT,
    Event,
    VoteEvent,
    in_order,
    standing_votes,
    taken_back,
)
from quantarena.leaderboard.arena.memory import by_board, content_of, scene_key
from quantarena.leaderboard.ranking.bradley_terry import bradley_terry
from quantarena.leaderboard.ranking.votes import Floats, Vote, tabulate

QUICK_MS = 1000
"""Whoever orders a set of images in less time has hardly looked at them."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over votes with its 95 % interval (Student's t); the ends are None below two votes."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Influence:
    """What a board would be without a judge.

    Attributes:
        board: key of the board.
        task: what was asked.
        share: share of the board's votes that the judge cast.
        tau: Kendall's tau-b of the board with and without the judge; 1 is no change.
        moved: largest change of a contestant's rank.
        leader: whether another contestant would lead.
    """

    board: str
    task: str
    share: float
    tau: float
    moved: int
    leader: bool


@dataclass(frozen=True, slots=True)
class JudgeQuality:
    """One judge.

    Attributes:
        judge: salted hash.
        kind: as in ``VoteEvent``.
        name: of a program.
        votes: ranked votes.
        skips: skipped sets.
        voided: votes that were taken back.
        agreement: Kendall's tau-b of a vote with the board of all other judges, over the votes; 0
            is what a judge who does not look gets.
        alpha: Krippendorff's ordinal alpha of the pairs of images that this judge and others put
            in order (behind, tied or before); None where there are none.
        alpha_pairs: number of these pairs.
        retest: share of pairs that got the same answer when a set was asked again, over the sets.
        checks: checks that were answered.
        failed: checks that were failed: a spoilt image not below the intact one, or two copies
            that do not tie.
        quick: share of votes within a second.
        first_wins: share of decided pairs in which the image shown first won; 0.5 is no bias.
        influence: on each board, the largest first.
    """

    judge: str
    kind: str
    name: str
    votes: int
    skips: int
    voided: int
    agreement: Estimate | None
    alpha: float | None
    alpha_pairs: int
    retest: Estimate | None
    checks: int
    failed: int
    quick: float
    first_wins: Estimate | None
    influence: tuple[Influence, ...]


def quality(events: Iterable[Event]) -> tuple[JudgeQuality, ...]:
    """All judges of a log, those with most votes first.

    People are compared with people; programs with people and with programs of their kind.
    """
    ordered = in_order(events)
    standing = standing_votes(ordered)
    void = taken_back(ordered)
    everything = [event for event in ordered if isinstance(event, VoteEvent)]
    ranked = by_board(event for event in standing if event.ranked)
    found = [
        _judge(judge, [event for event in everything if event.judge == judge], ranked, void)
        for judge in {event.judge for event in everything}
    ]
    return tuple(sorted(found, key=lambda one: (-one.votes, one.judge)))


def _judge(
    judge: str,
    events: Sequence[VoteEvent],
    ranked: Mapping[tuple[str, str], list[VoteEvent]],
    void: set[str],
) -> JudgeQuality:
    own = [event for event in events if event.id not in void]
    kind = events[0].judge_kind
    taus: list[float] = []
    influence = []
    shared: list[list[int]] = []
    for (board, task), votes in ranked.items():
        peers = [event for event in votes if event.judge_kind in ("human", kind)]
        shared += _shared_pairs(judge, peers)
        mine = [event.vote() for event in peers if event.judge == judge]
        others = [event.vote() for event in peers if event.judge != judge]
        if mine and others:
            taus += _agreements(mine, others)
            influence.append(_influence(board, task, mine, others))
    answered = [event for event in own if event.mode != "skip"]
    golds = [event for event in answered if event.purpose.startswith("gold")]
    votes_of = [event for event in own if event.ranked]
    return JudgeQuality(
        judge=judge,
        kind=kind,
        name=events[0].judge_name,
        votes=len(votes_of),
        skips=len(own) - len(answered),
        voided=len(events) - len(own),
        agreement=_estimate(taus),
        alpha=ordinal_alpha(shared),
        alpha_pairs=len(shared),
        retest=_estimate(_retests(own)),
        checks=len(golds),
        failed=sum(not passed(event) for event in golds),
        quick=float(np.mean([e.dwell_ms < QUICK_MS for e in answered])) if answered else 0.0,
        first_wins=_estimate([s for e in votes_of if (s := first_share(e)) is not None]),
        influence=tuple(sorted(influence, key=lambda one: (one.tau, -one.moved))),
    )


def passed(event: VoteEvent) -> bool:
    """Whether the answer to a check is the right one."""
    place = {position: tier for tier, names in enumerate(event.tiers) for position in names}
    names = [shown.contestant for shown in event.shown]
    if event.purpose == "gold-order":
        return place[names.index(INTACT)] < place[names.index(DESTROYED)]
    copies = [at for at, name in enumerate(names) if names.count(name) > 1]
    return len({place[at] for at in copies}) == 1


def relations(event: VoteEvent) -> dict[tuple[str, str], int]:
    """Each pair of contestants with -1 where the first of the two names won, 0 for a tie, or 1."""
    place = {
        event.shown[position].contestant: tier
        for tier, positions in enumerate(event.tiers)
        for position in positions
    }
    return {(a, b): int(np.sign(place[a] - place[b])) for a, b in combinations(sorted(place), 2)}


def first_share(event: VoteEvent) -> float | None:
    """Share of decided pairs that the image shown first won; None where all tie."""
    place = {position: tier for tier, names in enumerate(event.tiers) for position in names}
    pairs = [(a, b) for a, b in combinations(range(len(event.shown)), 2) if place[a] != place[b]]
    return float(np.mean([place[a] < place[b] for a, b in pairs])) if pairs else None


def _retests(own: Sequence[VoteEvent]) -> list[float]:
    """For each set that was asked again, the share of its pairs with the same answer."""
    first = {content_of(event): event for event in reversed(own) if event.ranked}
    shares = []
    for event in own:
        before = first.get(content_of(event))
        if event.purpose == "repeat" and event.mode != "skip" and before is not None:
            now, then = relations(event), relations(before)
            shares.append(float(np.mean([now[pair] == then[pair] for pair in now])))
    return shares


def _agreements(mine: Sequence[Vote], others: Sequence[Vote]) -> list[float]:
    """Tau-b of each vote with the strengths that the others' votes give."""
    names = sorted({name for vote in others for name in vote.contestants})
    strength = dict(zip(names, _strengths(others, names), strict=True))
    taus = []
    for vote in mine:
        place = {name: tier for tier, tied in enumerate(vote.tiers) for name in tied}
        known = [name for name in vote.contestants if name in strength]
        ours, theirs = [-place[name] for name in known], [strength[name] for name in known]
        if len(set(ours)) > 1 and len(set(theirs)) > 1:
            taus.append(float(stats.kendalltau(ours, theirs).statistic))
    return taus


def _shared_pairs(judge: str, peers: Sequence[VoteEvent]) -> list[list[int]]:
    """For each pair of images that a judge and others put in order, how each judge did so.

    A judge counts once for a pair, by the first answer.
    """
    found: dict[tuple[str, tuple[str, str]], dict[str, int]] = {}
    for event in peers:
        if event.mode != "best":  # who picks the best leaves the others unordered
            for pair, relation in relations(event).items():
                answers = found.setdefault((scene_key(event), pair), {})
                answers.setdefault(event.judge, relation)
    return [
        list(answers.values())
        for answers in found.values()
        if judge in answers and len(answers) > 1
    ]


def _influence(board: str, task: str, mine: Sequence[Vote], others: Sequence[Vote]) -> Influence:
    both = [*mine, *others]
    names = sorted({name for vote in both for name in vote.contestants})
    whole, without = _strengths(both, names), _strengths(others, names)
    ranks = [stats.rankdata(-strength, method="min") for strength in (whole, without)]
    tau = 1.0
    if len(names) > 1:
        found = float(stats.kendalltau(whole, without).statistic)
        tau = found if np.isfinite(found) else 0.0
    return Influence(
        board=board,
        task=task,
        share=len(mine) / len(both),
        tau=tau,
        moved=int(np.max(np.abs(ranks[0] - ranks[1]))),
        leader=int(np.argmax(whole)) != int(np.argmax(without)),
    )


def _strengths(votes: Sequence[Vote], names: Sequence[str]) -> Floats:
    # Rounded: the order of two contestants must not hang on the last digit of an iteration.
    return np.round(bradley_terry(tabulate(votes, names).wins), 6)


def _estimate(values: Sequence[float]) -> Estimate | None:
    if not values:
        return None
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, None, None, n)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)
