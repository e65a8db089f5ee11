"""The verb ``fetch``, the only one that downloads anything."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

from quantarena.bench.cli.common import JsonOption, Verb, emit
from quantarena.bench.errors import UserError
from quantarena.bench.plan import lookup


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


VERBS: dict[str, Verb] = {"fetch": fetch}
