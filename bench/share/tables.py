"""A row against the tables of this package: its workload, method, widths and settings. No torch."""

from functools import cache
from typing import Any

from quantarena.bench.closure import closure
from quantarena.bench.errors import QuantArenaError
from quantarena.bench.schema import Row, Status
from quantarena.bench.share.bounds import impossible
from quantarena.bench.spec import POLICY_NAMES, VARIANT_NAMES
from quantarena.bench.target import checked_target
from quantarena.bench.workloads import registry, workload_name
from quantarena.bench.workloads.pipeline_hash import pipeline_sha256
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.settings import LORA, PATHS
from quantarena.methods.builtin import FP, builtins
from quantarena.methods.core.json_files import read_object

SHOWN = 64
"""Conditions that a row repeats at most."""
SCHEDULER = "Scheduler"
"""End of the names of samplers' classes, which a setting may leave out."""
MOST_NAME = 300
"""Longest name that a page shows in a line; those of paths are the longest."""


def contradictions(row: Row) -> list[str]:
    """What a row says of its cell that cannot be, by the tables of this package."""
    cell, found = row.cell, []
    try:
        if cell.method != FP and not cell.method.startswith(f"{FP}@"):
            _ = cell.widths
    except ValueError as error:
        found.append(f"its bits: {error}")
    if cell.policy not in POLICY_NAMES:
        found.append(f"policy {cell.policy!r} does not exist")
    if cell.variant not in VARIANT_NAMES:
        found.append(f"variant {cell.variant!r} does not exist")
    target = cell.target
    try:
        checked_target(target.device, target.dtype, target.threads, target.runtime, target.offload)
    except QuantArenaError as error:
        found.append(f"its target: {error}")
    found += impossible(row)
    found += _long_names(row)
    if row.status is Status.OK and not row.workload:
        return [*found, "it is ok and says nothing of its workload's settings"]
    return found + (_of_workload(row) if row.workload else [])


def _long_names(row: Row) -> list[str]:
    """Names that a page shows in a line, and that are longer than any."""
    gpu = row.machine.get("gpu")
    names = {
        "workload": row.cell.workload,
        "method's title": row.method.get("title"),
        "processor": row.machine.get("cpu"),
        "GPU": gpu.get("name") if isinstance(gpu, dict) else gpu,
        "device": row.device.name if row.device else None,
        "backend": row.backend,
    }
    return [
        f"the name of its {what} has more than {MOST_NAME} characters"
        for what, name in names.items()
        if len(str(name)) > MOST_NAME
    ]


def unknown_here(row: Row) -> list[str]:
    """What of a row this package has no table for, so that nobody here can check it."""
    cell, found = row.cell, []
    if shipped(cell.workload) is None:
        found.append(f"its workload {cell.workload} is not one that ships with this package")
    if cell.method not in builtins():
        found.append(f"its method {cell.method} is not one of this package")
    elif not str(row.method.get("origin", "builtin")).startswith("builtin"):
        found.append(f"its method {cell.method} is a plug-in's of the same name")
    return found


def other_code(row: Row) -> list[str]:
    """What differs from this package without being wrong: code and versions move numbers."""
    known, stated = builtins().get(row.cell.method), row.method.get("code_sha256")
    if known is None or not stated or stated == _code(known.module):
        return []
    return [f"the code of {row.cell.method}, or of a library that it uses, is not this version's"]


@cache
def _code(module: str) -> str:
    return closure(module).key


def _of_workload(row: Row) -> list[str]:
    """Settings of the row that its workload does not have here."""
    info = shipped(row.cell.workload)
    if info is None:
        return []
    budget = row.cell.budget
    half = budget.batch // 2  # where memory ran out half as many images were drawn together
    expected: dict[str, Any] = {
        "steps": budget.steps or info.steps,
        "guidance": info.guidance,
        "eta": info.eta,
        "images": budget.images,
        "batch": half if half and row.workload.get("batch") == half else budget.batch,
        "conditions": info.conditions,
        "prompts": [info.prompts[i % len(info.prompts)] for i in range(SHOWN)]
        if info.prompts
        else [],
    }
    if info.resolution:
        expected["resolution"] = info.resolution
    pipeline, scheduler = _classes(info)
    expected |= {"pipeline": pipeline, "scheduler": scheduler, "reference": info.reference}
    expected |= dict.fromkeys(("lora", "inputs", "frames"))  # such settings are never looked up
    if not info.sampler and not info.outliers:  # these change what the hash is of
        expected["model_sha256"] = _model(info)
    return [
        f"its {name} is {brief(row.workload.get(name))}, {row.cell.workload} has {brief(value)}"
        for name, value in expected.items()
        if row.workload.get(name) != value
    ]


@cache
def shipped(name: str) -> WorkloadInfo | None:
    """A workload of the zoo with plain settings; None for any other name.

    Other names are never looked up: they may be paths, and a row of a stranger chose them.
    """
    try:
        base, given = workload_name.split(name)
        if base not in registry.names() or any(key in (*PATHS, LORA) for key in given):
            return None
        return registry.resolve(name)
    except (QuantArenaError, OSError, ValueError):
        return None


@cache
def _classes(info: WorkloadInfo) -> tuple[str, str]:
    """Classes of the pipeline and of its sampler, which a setting may replace."""
    parts = read_object(info.path / registry.INDEX)
    sampler = info.sampler or str(parts["scheduler"][1])
    return str(parts["_class_name"]), f"{sampler.removesuffix(SCHEDULER)}{SCHEDULER}"


@cache
def _model(info: WorkloadInfo) -> str:
    return pipeline_sha256(info.path)


def brief(value: Any) -> str:
    """A value of a row as a line shows it."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
