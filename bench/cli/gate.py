"""The verb ``gate``: a quantized folder against limits, for other projects' CI."""

import importlib
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from quantarena.bench import files
from quantarena.bench.cli.common import JsonOption, StageLines, Verb, emit
from quantarena.bench.cli.model import CACHE
from quantarena.bench.cli.options import SettingsOption
from quantarena.bench.errors import UserError
from quantarena.bench.metrics.names import LPIPS, PSNR, SSIM
from quantarena.bench.plan import lookup
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.spec import MOST_SEED, Budget, Cell
from quantarena.methods.builtin import FP, is_gguf


def gate(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of the quantized pipeline, or a .gguf file.", metavar="FOLDER"),
    ],
    against: Annotated[
        str,
        typer.Option("--against", help="Full precision: workload, pipeline folder or hub model."),
    ],
    max_lpips: Annotated[
        float | None, typer.Option(min=0, help="Largest mean LPIPS to full precision.")
    ] = None,
    min_psnr: Annotated[
        float | None, typer.Option(help="Least mean PSNR to full precision in dB.")
    ] = None,
    min_ssim: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Least mean SSIM to full precision.")
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(min=0, help="Least speed-up of one step, against fp32 in eager torch."),
    ] = None,
    images: Annotated[int, typer.Option("-n", "--images", min=2, help="Number of images.")] = 64,
    rounds: Annotated[int, typer.Option(min=8, help="Timed rounds, for --min-speedup.")] = 60,
    batch: Annotated[int, typer.Option(min=1, help="Images of one step.")] = 16,
    steps: Annotated[int, typer.Option(min=0, help="Sampler steps; 0 is the folder's own.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the noise.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where the sample cannot decide, too.")
    ] = False,
    junit: Annotated[
        Path | None, typer.Option(help="Write the checks as JUnit's XML.", metavar="FILE")
    ] = None,
    settings: SettingsOption = None,
    cache: Annotated[
        Path, typer.Option(help="Folder of cached stages, shared with runs.", metavar="DIR")
    ] = CACHE,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Exit with 0 if a quantized folder keeps its limits, with 1 if it is shown to break one."""
    limits = importlib.import_module("quantarena.bench.gate.limits")
    asked = (
        ("--max-lpips", LPIPS, max_lpips),
        ("--min-psnr", PSNR, min_psnr),
        ("--min-ssim", SSIM, min_ssim),
        ("--min-speedup", limits.SPEEDUP, min_speedup),
    )
    given = [(option, metric, bound) for option, metric, bound in asked if bound is not None]
    if not given:
        raise UserError(f"no limit is given: add one of {', '.join(o for o, _, _ in asked)}")
    for option, _, bound in given:
        if not math.isfinite(bound):
            raise UserError(f"{option} must be a number, not {bound}")
    files.finish_replacing(folder)
    if not os.path.isdir(folder) and not is_gguf(folder):
        raise UserError(
            f"{folder} is no folder and no .gguf file: write one with quantarena quantize"
        )
    lookup.check_kernels()
    told = importlib.import_module("quantarena.bench.gate.told")
    measure = importlib.import_module("quantarena.bench.gate.measure")
    workload = lookup.canonical_workload(against, tuple(settings or ()))
    size = min(batch, images)
    budget = Budget(images=images, batch=size, steps=steps, calibration_images=size)
    files.ensure_folder(cache)
    order = measure.Order(
        folder,
        Cell(workload, FP, FP, seed, budget=budget),
        tuple(limits.Limit(metric, bound, o.startswith("--max")) for o, metric, bound in given),
        rounds,
        cache,
        strict,
    )
    outcome: Any = measure.gate(order, StageLines(Reporter(quiet=quiet)))
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if junit is not None:
        told.write_junit(junit, order, outcome)
    emit(told.document(order, outcome), told.lines(order, outcome), as_json=as_json)
    return 0 if outcome.passed else 1


VERBS: dict[str, Verb] = {"gate": gate}
