"""The verb ``phenomena``."""

import dataclasses
import importlib
from pathlib import Path
from typing import Annotated

import typer

from quantarena.bench import files
from quantarena.bench.cli.common import RESULTS, JsonOption, Verb, emit, table
from quantarena.bench.cli.options import SettingsOption
from quantarena.bench.plan import lookup

CACHE = RESULTS / ".cache"


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


VERBS: dict[str, Verb] = {"phenomena": phenomena}
