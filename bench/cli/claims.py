"""The verb ``claims``: claims of papers against measured rows."""

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from quantarena.bench.cli.common import (
    RESULTS,
    JsonOption,
    ResultsOption,
    RunArgument,
    Verb,
    emit,
    opened,
    table,
)
from quantarena.bench.errors import UnknownName, did_you_mean
from quantarena.bench.plan.presets import DEFAULT
from quantarena.bench.report.claims import (
    Claim,
    Finding,
    Verdict,
    judge_claims,
    load_claims,
    policy_of,
)
from quantarena.bench.spec import DEFAULT_POLICY


def claims(
    run: RunArgument = DEFAULT,
    method: Annotated[str | None, typer.Option(help="Show the claims of this method only.")] = None,
    results: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Compare the claims of papers with the measurements of a run."""
    store = opened(results, run)
    every = load_claims()
    known = {claim.method for claim in every}
    if method is not None and method not in known:
        raise UnknownName(f"no claim of a method {method!r}: {did_you_mean(method, known)}")
    chosen = [claim for claim in every if method in (None, claim.method)]
    findings = judge_claims(chosen, [(store.folder, row) for row in store.rows()])
    shown: list[str | Table] = []
    for claim in chosen:
        shown.append(f"\n{_headline(claim)}")
        if claim.offline.command:
            shown.append(f"an experiment: {claim.offline.page}")
            shown.append(f"again with: {claim.offline.command}")
            continue
        of = [finding for finding in findings if finding.claim == claim]
        shown.append(_outcomes(of))
        shown += _commands(of, run)
    value = {
        "findings": [dataclasses.asdict(f) for f in findings],
        "experiments": [dataclasses.asdict(c) for c in chosen if c.offline.command],
    }
    emit(value, shown, as_json=as_json)


def _headline(claim: Claim) -> str:
    than = f" against {claim.offline.than}" if claim.offline.than else ""
    return f"{claim.method}{than}: {claim.effect}"


def _outcomes(findings: list[Finding]) -> Table:
    """The table of a claim: a line for each workload and width, a column for each policy."""
    policies = list(dict.fromkeys(finding.policy for finding in findings))
    lines: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        lines.setdefault((finding.workload, finding.bits), []).append(_measured(finding))
    metric = findings[0].claim.offline.metric
    heads = ("workload", "bits", *(f"{metric}, {policy} widths" for policy in policies))
    return table("", heads, [(*where, *outcomes) for where, outcomes in lines.items()])


def _measured(finding: Finding) -> str:
    """The verdict with the measured effect."""
    if finding.verdict is Verdict.MISSING or finding.mean is None or finding.other is None:
        return Verdict.MISSING.value
    share = f" ({100 * finding.mean / finding.other:+.0f} %)" if finding.other else ""
    interval = "" if finding.low is None else f" [{finding.low:+.3g}, {finding.high:+.3g}]"
    seeds = f", {finding.seeds} seeds" if finding.seeds > 1 else ""
    return (
        f"{finding.verdict.value} {finding.mean:+.3g}{interval}{share}, {finding.n} images{seeds}"
    )


def _commands(findings: list[Finding], run: str) -> list[str]:
    """What measures the missing outcomes of a claim: a command for each policy of its methods."""
    wanted: dict[str, dict[str, dict[str, None]]] = {}
    for finding in findings:
        if finding.verdict is not Verdict.MISSING:
            continue
        for method in (finding.claim.method, finding.claim.offline.than):
            if policy_of(method, finding.policy) != finding.policy:
                continue  # its row under uniform is asked for where that is missing
            asked = wanted.setdefault(finding.policy, {})
            for kind, name in (
                ("workload", finding.workload),
                ("method", method),
                ("bits", finding.bits),
            ):
                asked.setdefault(kind, {})[name] = None
    return [
        f"measure what is missing: quantarena run {run}"
        + "".join(f" --{kind} {','.join(names)}" for kind, names in asked.items())
        + ("" if policy == DEFAULT_POLICY else f" --policy {policy}")
        for policy, asked in wanted.items()
    ]


VERBS: dict[str, Verb] = {"claims": claims}
