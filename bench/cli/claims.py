"""The verb ``claims``."""

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
from quantarena.bench.plan.presets import DEFAULT
from quantarena.bench.report.claims import Claim, Finding, Verdict, judge_claims, load_claims


def claims(
    run: RunArgument = DEFAULT,
    method: Annotated[str | None, typer.Option(help="Claims of this method only.")] = None,
    results: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """What the papers claim, held against what a run has measured."""
    store = opened(results, run)
    chosen = [claim for claim in load_claims() if method in (None, claim.method)]
    found = judge_claims(chosen, [(store.folder, row) for row in store.rows()])
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
        for f in found
    ]
    lines = [_experiment(claim) for claim in chosen if claim.offline.command]
    value = {
        "findings": [dataclasses.asdict(f) for f in found],
        "experiments": [dataclasses.asdict(c) for c in chosen if c.offline.command],
    }
    emit(value, [table(f"claims on {run}", columns, cells), *lines], as_json=as_json)


def _measured(found: Finding, run: str) -> str:
    if found.verdict is Verdict.MISSING or found.mean is None or found.other is None:
        asked = f"{found.claim.method},{found.claim.offline.than}"
        return f"quantarena run {run} --method {asked} --bits {found.bits}"
    share = f", {100 * found.mean / found.other:+.0f} %" if found.other else ""
    interval = "" if found.low is None else f" [{found.low:+.3g}, {found.high:+.3g}]"
    seeds = f"{found.n} images, {found.seeds} seed{'s' if found.seeds > 1 else ''}"
    return f"{found.claim.offline.metric} {found.mean:+.3g}{interval}{share}; {seeds}"


def _experiment(claim: Claim) -> str:
    trial = claim.offline
    return f"{claim.method}: {claim.effect}: {trial.page}, again with: {trial.command}"


VERBS: dict[str, Verb] = {"claims": claims}
