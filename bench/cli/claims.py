"""The verb ``claims``: claims of papers against measured rows."""

import dataclasses
from typing import Annotated

import typer

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
from quantarena.bench.report.claims import Claim, Finding, Verdict, judge_claims, load_claims


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
    columns = ("method", "than", "bits", "workload", "claimed", "verdict", "measured here")
    cells = [
        (
            f.claim.method,
            f.claim.offline.than,
            f.bits,
            f.workload,
            f.claim.effect,
            f.verdict.value,
            _measured(f, run),
        )
        for f in findings
    ]
    lines = [_experiment(claim) for claim in chosen if claim.offline.command]
    value = {
        "findings": [dataclasses.asdict(f) for f in findings],
        "experiments": [dataclasses.asdict(c) for c in chosen if c.offline.command],
    }
    emit(value, [table(f"claims on {run}", columns, cells), *lines], as_json=as_json)


def _measured(finding: Finding, run: str) -> str:
    """The measured effect of a claim, or the command that measures it."""
    if finding.verdict is Verdict.MISSING or finding.mean is None or finding.other is None:
        asked = f"{finding.claim.method},{finding.claim.offline.than}"
        return f"quantarena run {run} --method {asked} --bits {finding.bits}"
    share = f", {100 * finding.mean / finding.other:+.0f} %" if finding.other else ""
    interval = "" if finding.low is None else f" [{finding.low:+.3g}, {finding.high:+.3g}]"
    seeds = f"{finding.n} images, {finding.seeds} seed{'s' if finding.seeds > 1 else ''}"
    return f"{finding.claim.offline.metric} {finding.mean:+.3g}{interval}{share}; {seeds}"


def _experiment(claim: Claim) -> str:
    trial = claim.offline
    return f"{claim.method}: {claim.effect}: {trial.page}, again with: {trial.command}"


VERBS: dict[str, Verb] = {"claims": claims}
