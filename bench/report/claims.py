"""The headline claims of the papers, checked against the rows that were measured here."""

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
from quantarena.bench.spec import POLICY_NAMES
from quantarena.bench.target import DEFAULT_TARGET
from quantarena.methods.builtin import builtins

PUBLISHED = POLICY_NAMES[-1]


class Verdict(StrEnum):
    """The outcome of a claim on the rows."""

    HOLDS = "holds"
    """The method is better, and the 95 % interval of the difference excludes zero."""
    OPPOSITE = "opposite"
    """The method is worse, and the interval excludes zero."""
    UNDECIDED = "undecided"
    """The interval includes zero."""
    MISSING = "not measured"


@dataclass(frozen=True, slots=True)
class OfflineTrial:
    """How a claim is tried on the models that ship: a comparison of rows, or an experiment.

    Attributes:
        bits: the widths at which methods are compared.
        than: the method to be better than; empty for an experiment.
        metric: the metric of the comparison.
        workloads: the workloads of the comparison.
        command: command line of the experiment; empty for a comparison.
        page: documentation page with the outcome of the experiment.
    """

    bits: tuple[str, ...] = ()
    than: str = ""
    metric: str = ""
    workloads: tuple[str, ...] = ()
    command: str = ""
    page: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """One headline claim of a paper.

    Attributes:
        method: registered name of the method.
        paper: arXiv id of the paper.
        setting: the paper's model, sampler and bits.
        effect: the paper's own number.
        source: table, figure or section of the paper.
        offline: how the claim is tried on the models that ship.
        online: command line that tries it on the paper's model, which has to be fetched.
        note: what differs from the paper in that command.
    """

    method: str
    paper: str
    setting: str
    effect: str
    source: str
    offline: OfflineTrial
    online: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of a claim on one workload at one width.

    Attributes:
        claim: the claim.
        policy: ``uniform``, the same widths for both methods; or ``published``, each paper's own.
        workload: name of the workload; empty for an experiment.
        bits: requested bits.
        verdict: the outcome.
        mean: mean of the paired differences over all seeds; None where there are none.
        low: lower end of the 95 % interval of the mean.
        high: upper end of that interval.
        n: number of images.
        seeds: number of seeds that both methods have.
        other: mean of the other method's metric on the same images.
    """

    claim: Claim
    policy: str
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
    trial = OfflineTrial(
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
    """The outcome of each claim on each of its workloads at each of its widths, by policy.

    Under ``published`` both methods have their papers' own layers and widths; one whose paper has
    none, such as rounding to nearest, has those of ``uniform``.

    Args:
        claims: the claims; experiments have no rows and are left out.
        rows: pairs of the folder of a run and a row of it.
    """
    finished: _Finished = {}
    for folder, row in rows:
        cell = row.cell
        if row.status is Status.OK and (cell.variant, cell.options, cell.target) == _PLAIN:
            same = finished.setdefault((cell.method, cell.policy, cell.bits, cell.workload), {})
            same[cell.shared_key] = (folder, row)
    return tuple(
        _finding(claim, policy, workload, bits, finished)
        for claim in claims
        for workload in claim.offline.workloads
        for bits in claim.offline.bits
        for policy in ("uniform", PUBLISHED)
        if policy == "uniform" or _has_own_widths(claim.method)
    )


def policy_of(method: str, policy: str) -> str:
    """The policy of a method's row in a comparison under ``policy``."""
    return policy if policy != PUBLISHED or _has_own_widths(method) else "uniform"


def _has_own_widths(method: str) -> bool:
    return builtins()[method].own_widths


_PLAIN = ("paper", (), DEFAULT_TARGET)
_Finished = dict[tuple[str, str, str, str], dict[str, tuple[Path, Row]]]
"""By method, policy, bits and workload, then by what cells share: a run's folder and its ok row."""


def _finding(claim: Claim, policy: str, workload: str, bits: str, finished: _Finished) -> Finding:
    own = finished.get((claim.method, policy_of(claim.method, policy), bits, workload), {})
    other = claim.offline.than
    rivals = finished.get((other, policy_of(other, policy), bits, workload), {})
    gaps: list[Array] = []
    others: list[float] = []
    prompts: list[int] = []
    sample: Row | None = None
    for shared, (folder, row) in own.items():
        rival = rivals.get(shared)
        if rival is None:
            continue
        try:
            gap = paired_gaps(folder, row, *rival).get(claim.offline.metric)
        except UserError:  # without scores it counts as not run
            continue
        measured = rival[1].measurement(claim.offline.metric)
        if gap is not None and measured is not None and measured.value is not None:
            gaps.append(gap)
            prompts += prompts_of(folder, row) or ()
            others.append(measured.value)
            sample = row
    if sample is None:
        return Finding(claim, policy, workload, bits, Verdict.MISSING)
    pooled = np.concatenate(gaps)
    # a prompt that was drawn with several seeds is one unit, not several
    groups = tuple(prompts) if len(prompts) == pooled.size else None
    shown = difference(claim.offline.metric, pooled, sample, groups)
    verdict = {"A is better": Verdict.HOLDS, "B is better": Verdict.OPPOSITE}.get(
        shown.verdict, Verdict.UNDECIDED
    )
    return Finding(
        claim,
        policy,
        workload,
        bits,
        verdict,
        shown.mean,
        shown.low,
        shown.high,
        shown.n,
        len(gaps),
        float(np.mean(others)),
    )
