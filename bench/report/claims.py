"""What the papers claim, held against what was measured here."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.bootstrap import Array
from quantarena.bench.report.compare import difference, paired_gaps, prompts_of
from quantarena.bench.schema import Row, Status


class Verdict(StrEnum):
    """What the rows say of a claim."""

    HOLDS = "holds"
    """Better than the other method beyond the 95 % interval."""
    OPPOSITE = "opposite"
    """Worse beyond the interval."""
    UNDECIDED = "undecided"
    """The interval includes no difference."""
    MISSING = "not measured"


@dataclass(frozen=True, slots=True)
class Trial:
    """How a claim is tried offline: a comparison of rows, or an experiment.

    Attributes:
        bits: at which.
        than: method to be better than; empty for an experiment.
        metric: judged by which.
        workloads: on which.
        command: of the experiment; empty for a comparison.
        page: which holds its outcome.
    """

    bits: tuple[str, ...] = ()
    than: str = ""
    metric: str = ""
    workloads: tuple[str, ...] = ()
    command: str = ""
    page: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """One headline claim.

    Attributes:
        method: registered name.
        paper: arXiv id.
        setting: model, sampler, bits.
        effect: the paper's own number.
        source: where in the paper.
        offline: how it is tried on the models that ship.
        online: command on the paper's model.
        note: what differs there.
    """

    method: str
    paper: str
    setting: str
    effect: str
    source: str
    offline: Trial
    online: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim on one workload at one width.

    Attributes:
        claim: which.
        workload: where; empty for an experiment.
        bits: requested.
        verdict: of the rows.
        mean: of the paired differences, all seeds together; None where there are none.
        low: lower end of the 95 % interval.
        high: upper end.
        n: images.
        seeds: that both methods have.
        other: mean of the method compared with, on the same images.
    """

    claim: Claim
    workload: str
    bits: str
    verdict: Verdict
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    seeds: int = 0
    other: float | None = None


def load_claims() -> tuple[Claim, ...]:
    """Every claim of ``methods/claims.toml``, in its order."""
    text = (resources.files("quantarena.methods") / "claims.toml").read_text(encoding="utf-8")
    return tuple(_claim(document) for document in tomllib.loads(text)["claim"])


def _claim(document: dict[str, Any]) -> Claim:
    offline, online = document["offline"], document["online"]
    trial = Trial(
        tuple(offline.get("bits", ())),
        offline.get("than", ""),
        offline.get("metric", ""),
        tuple(offline.get("workloads", ())),
        offline.get("command", ""),
        offline.get("page", ""),
    )
    if bool(trial.command) == bool(trial.than):
        raise ValueError(f"{document['method']}: offline needs either than or command")
    return Claim(
        document["method"],
        document["paper"],
        document["setting"],
        document["effect"],
        document["source"],
        trial,
        online["command"],
        online.get("note", ""),
    )


def judge_claims(claims: Iterable[Claim], rows: Iterable[tuple[Path, Row]]) -> tuple[Finding, ...]:
    """Hold claims against rows.

    Args:
        claims: to be judged; experiments are passed over.
        rows: (folder of the run, row) of the runs to look at.
    """
    found = {}
    for folder, row in rows:
        cell = row.cell
        if row.status is Status.OK and (cell.variant, cell.policy) == ("paper", "uniform"):
            found[(cell.method, cell.bits, cell.shared_key)] = (folder, row)
    return tuple(
        _finding(claim, workload, bits, found)
        for claim in claims
        for workload in claim.offline.workloads
        for bits in claim.offline.bits
    )


_Found = dict[tuple[str, str, str], tuple[Path, Row]]


def _finding(claim: Claim, workload: str, bits: str, found: _Found) -> Finding:
    gaps: list[Array] = []
    others: list[float] = []
    prompts: list[int] = []
    sample: Row | None = None
    for (method, width, shared), (folder, row) in found.items():
        rival = found.get((claim.offline.than, bits, shared))
        if (method, width, row.cell.workload) != (claim.method, bits, workload) or rival is None:
            continue
        try:
            gap = paired_gaps(folder, row, *rival).get(claim.offline.metric)
        except UserError:  # no scores: as if it had not been run
            continue
        measured = rival[1].measurement(claim.offline.metric)
        if gap is not None and measured is not None and measured.value is not None:
            gaps.append(gap)
            prompts += prompts_of(folder, row) or ()
            others.append(measured.value)
            sample = row
    if sample is None:
        return Finding(claim, workload, bits, Verdict.MISSING)
    pooled = np.concatenate(gaps)
    # a prompt that was drawn with several seeds is one unit, not several
    groups = tuple(prompts) if len(prompts) == pooled.size else None
    shown = difference(claim.offline.metric, pooled, sample, groups)
    verdict = {"A is better": Verdict.HOLDS, "B is better": Verdict.OPPOSITE}.get(
        shown.verdict, Verdict.UNDECIDED
    )
    other = float(np.mean(others))
    return Finding(
        claim, workload, bits, verdict, shown.mean, shown.low, shown.high, shown.n, len(gaps), other
    )
