"""The verbs about a workload: ``fetch``, which alone downloads anything, and ``phenomena``."""

import dataclasses
import importlib
from pathlib import Path
from typing import Annotated

import typer

from quantarena.bench import files
from quantarena.bench.cli.common import RESULTS, JsonOption, Verb, emit, table
from quantarena.bench.cli.options import SettingsOption
from quantarena.bench.errors import UserError
from quantarena.bench.plan import lookup

CACHE = RESULTS / ".cache"


def fetch(
    name: Annotated[
        str, typer.Argument(help="Name of a paper's workload, or id of a model on the Hub.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Folder to write to. [the cache of the Hub]", metavar="DIR"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a diffusers pipeline from the Hugging Face Hub, for plan, run and quantize."""
    paper = lookup.paper_workloads().get(name)
    hub = importlib.import_module("quantarena.bench.workloads.hub_download")
    if name in lookup.workload_names():
        raise UserError(f"workload {name} comes with the package: there is nothing to download")
    model = name if paper is None else paper.model
    folder = hub.fetch(model, to)
    workload = str(folder) if to else name
    emit(
        {"model": model, "folder": str(folder), "workload": workload},
        f"{model} is in {folder}: quantarena run quick --workload {workload}",
        as_json=as_json,
    )


def phenomena(
    workload: Annotated[
        str, typer.Argument(help="Workload, diffusers pipeline folder, or downloaded hub model.")
    ],
    settings: SettingsOption = None,
    cache: Annotated[
        Path, typer.Option(help="Folder of cached stages, shared with runs.", metavar="DIR")
    ] = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Measure what quantization meets in a model: outliers, ranges over time, halves of skips."""
    name = lookup.canonical_workload(workload, tuple(settings or ()))
    files.ensure_folder(cache)
    report = importlib.import_module("quantarena.bench.report.phenomena")
    shown = importlib.import_module("quantarena.bench.metrics.phenomena.table").shown
    found = report.measured(name, cache)
    rows = [
        (line.name, line.neutral, line.layers, shown(line.median), shown(line.largest), line.where)
        for line in found
    ]
    columns = ("phenomenon", "absent", "layers", "median layer", "largest layer", "in")
    value = {"workload": name, "phenomena": [dataclasses.asdict(line) for line in found]}
    emit(value, table(lookup.shown_workload(name), columns, rows), as_json=as_json)


VERBS: dict[str, Verb] = {"fetch": fetch, "phenomena": phenomena}
