"""A plan's stages for a reader: how long with its workers, what is shared, what is cached."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from quantarena.bench.plan.dag import MODEL, Stage
from quantarena.bench.plan.estimate import SHARED_STAGES
from quantarena.bench.plan.plan import Plan, minutes
from quantarena.bench.plan.schedule import simulate

_MOST_LINES = 24
_OTHERS = (1, 2, 4, 8, 16, 32, 64)


def outlook_lines(plan: Plan) -> list[str]:
    """Makespan, critical path, disk and shared stages of a plan."""
    stages = plan.dag.stages.values()
    cached = sum(stage.cached for stage in stages)
    lines = [f"  stages: {len(stages)}, of which {cached} are cached"]
    if plan.todo:
        lines += [_span(plan), _path(plan), _elsewhere(plan)]
    lines += _shared(plan)
    return lines


def outlook_document(plan: Plan) -> dict[str, Any]:
    """The same as plain data, with every stage."""
    seconds, chain = plan.dag.critical()
    return {
        "schedule": {name: round(value, 3) for name, value in asdict(plan.schedule).items()},
        "critical_path": {"seconds": round(seconds, 1), "stages": [s.key for s in chain]},
        "stages": [asdict(stage) for stage in plan.dag.stages.values()],
    }


def _span(plan: Plan) -> str:
    s = plan.schedule
    timing = f"{minutes(s.timing)} of latencies, one at a time" if s.timing else "no latencies"
    who = f"{plan.fan.workers} workers" if plan.fan.workers > 1 else "1 worker"
    return f"  with {who}: {minutes(s.cells)} of cells ({100 * s.busy:.0f} % busy), then {timing}"


def _path(plan: Plan) -> str:
    seconds, chain = plan.dag.critical()
    steps = " -> ".join(f"{stage.label} {minutes(stage.left)}" for stage in chain)
    return f"  critical path {minutes(seconds)}: {steps}"


def _elsewhere(plan: Plan) -> str:
    """The same with other numbers of workers, timings on one machine."""
    found = []
    for workers in _OTHERS:
        if workers <= max(8, 2 * plan.fan.workers):
            found.append(f"{workers}: {minutes(simulate(plan.dag, workers).seconds)}")
    return f"  by workers, starts and page left out: {', '.join(found)}"


def _shared(plan: Plan) -> list[str]:
    """One line for each stage that several cells use."""
    models = Counter(s.cells for s in plan.dag.stages.values() if s.name == MODEL and s.cells > 1)
    shared = [stage for stage in plan.dag.shared if stage.name != MODEL]
    lines = [f"  shared: {_line(stage)}" for stage in shared[:_MOST_LINES]]
    if len(shared) > _MOST_LINES:
        lines.append(f"  shared: {len(shared) - _MOST_LINES} more; --json lists all")
    lines += [f"  shared: {count} models by {cells} cells each" for cells, count in models.items()]
    return lines


def _line(stage: Stage) -> str:
    state = "cached" if stage.cached else "to make"
    basis = "measured" if stage.measured else "estimated"
    took = f", {minutes(stage.seconds)} {basis}" if stage.seconds >= 0.5 else ""
    size = f", {stage.disk / 1e6:.0f} MB" if stage.disk >= 500_000 else ""
    by = f", by {stage.cells} cells" if stage.name in SHARED_STAGES or stage.cells > 1 else ""
    return f"{stage.label}{by}{took}{size}, {state}"
