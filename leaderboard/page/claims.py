"""What the papers claim, with what was measured at equal widths and at each paper's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNIFORM, PUBLISHED = "uniform", "published"
MISSING = "not measured"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A claim at one width of one workload under one policy.

    Attributes:
        verdict: ``holds``, ``opposite``, ``undecided`` or ``not measured``.
        mean: the method's metric minus the other's, mean over images; None where not measured.
        low: lower end of its 95 % interval.
        high: upper end.
        share: the difference as a share of the other method's metric; None where that is 0.
        images: number of images.
        seeds: number of seeds.
    """

    verdict: str
    mean: float | None
    low: float | None
    high: float | None
    share: float | None
    images: int
    seeds: int


@dataclass(frozen=True, slots=True)
class ClaimLine:
    """One workload and width of a claim.

    Attributes:
        workload: its name.
        bits: the requested bits.
        uniform: the outcome where both methods quantize the same layers at the same widths.
        published: the outcome at each paper's own layers and widths; None where the method's paper
            has none.
    """

    workload: str
    bits: str
    uniform: Outcome
    published: Outcome | None

    @property
    def measured(self) -> bool:
        """Whether either outcome is known."""
        return any(one and one.verdict != MISSING for one in (self.uniform, self.published))


@dataclass(frozen=True, slots=True)
class ClaimView:
    """One claim of a paper.

    Attributes:
        method: registered name of the method.
        than: registered name of the method that it should beat.
        metric: in which it should.
        paper: arXiv id.
        setting: the paper's model and bits.
        effect: the paper's own number.
        source: where in the paper.
        lines: what was measured.
    """

    method: str
    than: str
    metric: str
    paper: str
    setting: str
    effect: str
    source: str
    lines: tuple[ClaimLine, ...]

    def tally(self, policy: str) -> str:
        """Such as ``2 of 6 hold, 1 opposite``, over what was measured under a policy."""
        found = [getattr(line, policy) for line in self.lines]
        known = [one.verdict for one in found if one and one.verdict != MISSING]
        if not known:
            return MISSING
        against = known.count("opposite")
        return f"holds in {known.count('holds')} of {len(known)}" + (
            f", the opposite in {against}" if against else ""
        )


def claim_views(findings: Sequence[Mapping[str, Any]]) -> tuple[ClaimView, ...]:
    """The claims of which something was measured.

    Args:
        findings: as ``quantarena claims --json`` prints them: each has its claim, a policy, a
            workload, bits and an outcome.
    """
    lines: dict[int, dict[tuple[str, str], dict[str, Outcome]]] = {}
    claims: list[Mapping[str, Any]] = []
    for finding in findings:
        claim = finding["claim"]
        if claim not in claims:
            claims.append(claim)
        place = lines.setdefault(claims.index(claim), {})
        where = place.setdefault((finding["workload"], finding["bits"]), {})
        where[finding["policy"]] = _outcome(finding)
    views = (_view(claim, lines[number]) for number, claim in enumerate(claims))
    return tuple(view for view in views if view.lines)


def _view(
    claim: Mapping[str, Any], lines: Mapping[tuple[str, str], Mapping[str, Outcome]]
) -> ClaimView:
    found = (
        ClaimLine(workload, bits, outcomes[UNIFORM], outcomes.get(PUBLISHED))
        for (workload, bits), outcomes in lines.items()
    )
    return ClaimView(
        claim["method"],
        claim["offline"]["than"],
        claim["offline"]["metric"],
        claim["paper"],
        claim["setting"],
        claim["effect"],
        claim["source"],
        tuple(line for line in found if line.measured),
    )


def _outcome(finding: Mapping[str, Any]) -> Outcome:
    mean, other = finding["mean"], finding["other"]
    return Outcome(
        str(finding["verdict"]),
        mean,
        finding["low"],
        finding["high"],
        mean / other if mean is not None and other else None,
        finding["n"],
        finding["seeds"],
    )
