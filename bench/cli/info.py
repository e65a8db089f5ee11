"""The verbs ``ls``, ``doctor`` and ``check-method``."""

import dataclasses
import importlib
from enum import StrEnum
from typing import Annotated, Any

import typer

from quantarena.bench.cli.common import (
    RESULTS,
    JsonOption,
    PluginOption,
    ResultsOption,
    Verb,
    emit,
    table,
)
from quantarena.bench.cli.options import PreferOption
from quantarena.bench.errors import UserError
from quantarena.bench.plan import lookup, presets
from quantarena.bench.spec import POLICY_NAMES


class Kind(StrEnum):
    """The kinds of things that can be listed."""

    METHODS = "methods"
    WORKLOADS = "workloads"
    METRICS = "metrics"
    PRESETS = "presets"


def ls(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    plugin: PluginOption = None,
    options: Annotated[
        bool, typer.Option("--options", help="List the options of the methods.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List methods, workloads, metrics or presets."""
    if options and kind is not Kind.METHODS:
        raise UserError(f"--options lists options of methods, not of {kind}: ls methods --options")
    if options:
        rows = _options(lookup.plugin_paths(plugin or ()))
    elif kind is Kind.METHODS:
        rows = _methods(lookup.plugin_paths(plugin or ()))
    elif kind is Kind.WORKLOADS:
        rows = [_workload(name) for name in lookup.workload_names()]
        rows += [_paper(name, paper) for name, paper in lookup.paper_workloads().items()]
    elif kind is Kind.METRICS:
        catalogue = importlib.import_module("quantarena.bench.metrics.names")
        rows = [dataclasses.asdict(info) for info in catalogue.METRICS.values()]
    else:
        rows = [_preset(name) for name in presets.PRESETS]
    columns = list(rows[0]) if rows else ["none"]
    emit(rows, table("", columns, [list(row.values()) for row in rows]), as_json=as_json)


def doctor(
    plugin: PluginOption = None, results: ResultsOption = RESULTS, as_json: JsonOption = False
) -> int:
    """Examine hardware, kernels, libraries, models, plug-ins and disk, and say what is wrong."""
    from quantarena.bench.report.doctor import examine

    checks = examine(results, lookup.plugin_paths(plugin or ()))
    shown = table("", ("", "what", "found"), [(c.state, c.name, c.detail) for c in checks])
    emit([dataclasses.asdict(check) for check in checks], shown, as_json=as_json)
    return 1 if any(check.state == "broken" for check in checks) else 0


def check_method(
    name: Annotated[str, typer.Argument(help="Method to check.")],
    plugin: PluginOption = None,
    prefer_plugin: PreferOption = False,
    as_json: JsonOption = False,
) -> int:
    """Run the conformance suite on a method: the checks that every method must pass."""
    plugins = lookup.plugin_paths(plugin or ())
    lookup.check_kernels()
    lookup.check_methods((name,), plugins, prefer_plugin=prefer_plugin)
    check = importlib.import_module("quantarena.methods.testing.conformance").check
    results: list[Any] = list(check(name, plugins, prefer_plugin))
    value = [dataclasses.asdict(result) for result in results]
    columns = list(value[0]) if value else ["none"]
    emit(value, table(name, columns, [list(v.values()) for v in value]), as_json=as_json)
    return 0 if all(_passed(result) for result in value) else 1


VERBS: dict[str, Verb] = {"ls": ls, "doctor": doctor, "check-method": check_method}


def _passed(result: dict[str, Any]) -> bool:
    return bool(result.get("ok", result.get("passed", False)))


def _methods(plugins: tuple[str, ...]) -> list[dict[str, Any]]:
    registry = importlib.import_module("quantarena.methods.registry")
    rows = []
    for name in registry.names(plugins):
        entry = lookup.method(name, plugins)
        info, supports = entry.method.info, entry.method.supports
        rows.append(
            {
                "name": name,
                "title": info.title,
                "venue": info.venue,
                "paper": info.paper,
                "weights": ",".join(map(str, supports.weight_bits)),
                "activations": ",".join(map(str, supports.act_bits)),
                "policies": ",".join(_policies(entry.method)),
                "version": info.version,
                "origin": entry.origin,
                "summary": info.summary,
            }
        )
    return rows


def _policies(method: Any) -> list[str]:
    """The policies that a method can run under; a rival has no widths of a paper's."""
    published = getattr(method, "published", None) is not None
    can = {"budget": method.supports.budget, "published": published}
    return [name for name in POLICY_NAMES if can.get(name, True)]


def _options(plugins: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every option of every method."""
    registry = importlib.import_module("quantarena.methods.registry")
    read = importlib.import_module("quantarena.methods.options")
    return [
        {"option": f"{name}.{option.name}", **dataclasses.asdict(option)}
        for name in registry.names(plugins)
        for option in read.describe(lookup.method(name, plugins).method.Options)
    ]


def _workload(name: str) -> dict[str, Any]:
    info = lookup.workload(name)
    return {
        "name": info.name,
        "title": info.title,
        "resolution": info.resolution,
        "steps": info.steps,
        "guidance": info.guidance,
        "conditions": info.conditions,
        "megabytes": round(info.megabytes, 1),
        "licence": info.licence,
        "state": "ready",
        "model": "",
        "images": "",
        "source": "",
    }


def _paper(name: str, paper: Any) -> dict[str, Any]:
    here = importlib.import_module("quantarena.bench.workloads.hub").snapshot(paper.model)
    return {
        "name": name,
        "title": paper.title,
        "resolution": paper.resolution,
        "steps": paper.steps,
        "guidance": paper.guidance,
        "conditions": paper.conditions,
        "megabytes": paper.megabytes,
        "licence": paper.licence,
        "state": "ready" if here else "needs download",
        "model": paper.model,
        "images": paper.images,
        "source": paper.source,
    }


def _preset(name: str) -> dict[str, Any]:
    grid = presets.PRESETS[name].grid
    return {
        "name": name,
        "cells": len(grid.cells()),
        "workloads": ", ".join(grid.workloads),
        "methods": ", ".join(grid.all_methods),
        "bits": ", ".join(dict.fromkeys((*grid.bits, *(bits for _, bits in grid.also)))),
        "seeds": len(grid.seeds),
        "images": grid.budget.images,
        "iterations": grid.budget.iterations,
        "title": grid.title,
    }
