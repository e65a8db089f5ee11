"""The verbs that ship a model: ``quantize`` and ``sample``."""

import importlib
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from quantarena.bench import files
from quantarena.bench.cli.common import (
    RESULTS,
    JsonOption,
    PluginOption,
    StageLines,
    Verb,
    emit,
)
from quantarena.bench.cli.options import (
    DeviceOption,
    MethodOptionsOption,
    OffloadOption,
    PreferOption,
    SettingsOption,
    place,
    place_words,
)
from quantarena.bench.errors import UserError, did_you_mean
from quantarena.bench.plan import lookup, presets
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.spec import (
    DEFAULT_POLICY,
    DEFAULT_VARIANT,
    MOST_SEED,
    POLICY_NAMES,
    Budget,
    Cell,
)
from quantarena.bench.target import DEFAULT_TARGET, RUNTIMES
from quantarena.methods.core.bits import FP_WIDTH, parse_bits

OTHER_RUNTIMES = tuple(name for name in RUNTIMES if name != DEFAULT_TARGET.runtime)
CACHE = RESULTS / ".cache"
_BUDGET = Budget()


def quantize(
    workload: Annotated[
        str, typer.Argument(help="Workload, diffusers pipeline folder, or downloaded hub model.")
    ],
    method: Annotated[str, typer.Option("--method", help="Name of the method.")],
    bits: Annotated[str, typer.Option("--bits", help="Bits, such as w4a8.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", metavar="DIR")],
    samples: Annotated[
        int, typer.Option(min=1, help="Number of calibration points.")
    ] = _BUDGET.calibration_samples,
    calibration_images: Annotated[
        int,
        typer.Option(min=1, help="Number of images whose sampling is recorded for calibration."),
    ] = _BUDGET.calibration_images,
    range_samples: Annotated[
        int, typer.Option(min=0, help="Points that ranges are found on; 0 for as many as learn.")
    ] = _BUDGET.range_samples,
    iterations: Annotated[
        int, typer.Option(min=0, help="Reconstruction iterations per block.")
    ] = _BUDGET.iterations,
    steps: Annotated[int, typer.Option(min=0, help="Sampler steps; 0 is the workload's own.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed.")] = 0,
    variant: Annotated[str, typer.Option(help="Variant of the method.")] = DEFAULT_VARIANT,
    policy: Annotated[
        str, typer.Option(help=f"Policy of widths, one of {', '.join(POLICY_NAMES)}.")
    ] = DEFAULT_POLICY,
    option: MethodOptionsOption = None,
    settings: SettingsOption = None,
    device: DeviceOption = None,
    offload: OffloadOption = None,
    plugin: PluginOption = None,
    prefer_plugin: PreferOption = False,
    cache: Annotated[
        Path, typer.Option(help="Folder of cached stages, shared with runs.", metavar="DIR")
    ] = CACHE,
    force: Annotated[bool, typer.Option("--force", help="Write over an earlier export.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Quantize a model and write it as a diffusers pipeline with a packed denoiser."""
    plugins = lookup.plugin_paths(plugin or ())
    target = place(device, offload)
    lookup.check_kernels()
    lookup.check_methods((method,), plugins, prefer_plugin=prefer_plugin)
    presets.known_variant(variant)
    presets.known_policy(policy)
    budget = Budget(
        steps=steps,
        calibration_images=calibration_images,
        calibration_samples=samples,
        range_samples=range_samples,
        iterations=iterations,
    )
    name = lookup.canonical_workload(workload, tuple(settings or ()))
    options = lookup.method_options(option or (), (method,), plugins, prefer_plugin=prefer_plugin)
    chosen = dict(options).get(method, ())
    cell = Cell(name, method, _packable(bits), seed, variant, policy, budget, chosen, target)
    files.ensure_folder(cache)
    shown = StageLines(Reporter(quiet=quiet))
    ship = importlib.import_module("quantarena.bench.ship.quantize_model")
    order = ship.Order(
        cell, output, cache, plugins, _command(cell, plugins, prefer_plugin), force, prefer_plugin
    )
    document: dict[str, Any] = ship.quantize_model(order, shown)
    for warning in document["meta"]["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    sizes, observed = document["bytes"], document["meta"]["observed"]
    line = (
        f"{output}: {sizes['file'] / 1e6:.2f} MB packed, {observed['fp_bytes'] / 1e6:.2f} MB in "
        f"fp32; codes {sizes['codes']}, scales {sizes['scales']}, floating {sizes['floating']} "
        f"bytes; draw with: quantarena sample {shlex.quote(str(output))}"
    )
    emit({"folder": str(output), **document}, line, as_json=as_json)
    return 0


def sample(
    folder: Annotated[Path, typer.Argument(help="Folder that quantize wrote.", metavar="DIR")],
    count: Annotated[int, typer.Option("-n", "--images", min=1, help="Number of pictures.")] = 8,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG to write.", metavar="FILE")
    ] = Path("samples.png"),
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Prompt, or class number; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Sampler steps; 0 is the model's own.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures with a quantized model, as one grid."""
    _require_export(folder)
    lookup.check_kernels()
    shown = StageLines(Reporter(quiet=quiet))
    exported = importlib.import_module("quantarena.bench.ship.pipeline_folder").open_exported(
        folder
    )
    ship = importlib.import_module("quantarena.bench.ship.sample_grid")
    found: dict[str, Any] = ship.draw_grid(
        exported,
        folder,
        output,
        count=count,
        prompts=tuple(prompt or ()),
        seed=seed,
        steps=steps,
        progress=shown,
    )
    line = f"{output}: {count} pictures in {found['seconds']} s ({found['backend']})"
    emit(found, line, as_json=as_json)


def export_model(
    folder: Annotated[Path, typer.Argument(help="Folder that quantize wrote.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", metavar="DIR")],
    to: Annotated[str, typer.Option(help="Runtime: openvino or onnx.")] = "openvino",
    images: Annotated[
        int, typer.Option("-n", "--images", min=1, help="Images of the parity gate, and of a step.")
    ] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Write a quantized denoiser for another runtime, which runs the same codes in int8."""
    if to not in OTHER_RUNTIMES:
        raise UserError(f"unknown runtime {to!r}: {did_you_mean(to, OTHER_RUNTIMES)}")
    _require_export(folder)
    lookup.check_kernels()
    ship = importlib.import_module("quantarena.bench.ship.export_model")
    order = ship.Order(folder, to, output, images, rounds, seed)
    reporter = Reporter(quiet=quiet)
    found: dict[str, Any] = ship.export_model(order, StageLines(reporter))
    if found["warning"]:
        reporter.warn(found["warning"])
    line = (
        f"{output}: {found['layers']} layers in integers, {found['bytes'] / 1e6:.2f} MB; a step "
        f"takes {found['step_ms']:.1f} ms, {found['packed_step_ms']:.1f} ms on our kernels; LPIPS "
        f"between both {found['lpips_mean']:.4f}, at most {found['lpips_max']:.4f}"
    )
    emit(found, line, as_json=as_json)
    return 0


VERBS: dict[str, Verb] = {"quantize": quantize, "sample": sample, "export-model": export_model}


def _packable(bits: str) -> str:
    try:
        widths = parse_bits(bits)
    except ValueError as error:
        raise UserError(str(error)) from None
    if widths.weight == FP_WIDTH:
        raise UserError(f"bits {bits!r} do not pack: weights need 1 to 8 bits")
    return str(widths)


def _command(cell: Cell, plugins: tuple[str, ...], prefer_plugin: bool) -> str:
    """The command line that makes the model again; paths by their last name."""
    budget = cell.budget
    words = ["quantarena", "quantize", lookup.shown_workload(cell.workload)]
    words += ["--method", cell.method, "--bits", cell.bits, "--seed", str(cell.seed)]
    words += ["--samples", str(budget.calibration_samples)]
    words += ["--calibration-images", str(budget.calibration_images)]
    words += ["--iterations", str(budget.iterations)]
    if budget.range_samples != _BUDGET.range_samples:
        words += ["--range-samples", str(budget.range_samples)]
    if budget.steps:
        words += ["--steps", str(budget.steps)]
    if cell.variant != DEFAULT_VARIANT:
        words += ["--variant", cell.variant]
    if cell.policy != DEFAULT_POLICY:
        words += ["--policy", cell.policy]
    for option, value in cell.options:
        words += ["--option", f"{cell.method}.{option}={value}"]
    words += place_words(cell.target)
    for path in plugins:
        words += ["--plugin", Path(path).name]
    if prefer_plugin:
        words += ["--prefer-plugin"]
    return shlex.join([*words, "-o", "DIR"])


def _require_export(folder: Path) -> None:
    """Refuse, before anything is imported, what is no folder.

    Raises:
        UserError: the line says what writes one.
    """
    files.finish_replacing(folder)
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is no folder: write one with quantarena quantize")
