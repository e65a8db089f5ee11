"""Quantizes one model and writes it as a pipeline folder: the verb ``quantize``."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from quantarena.bench.adapters.drawing import refuse_lora
from quantarena.bench.cache import Keyed, StageCache
from quantarena.bench.errors import QuantArenaError, UserError, one_line
from quantarena.bench.files import sweep
from quantarena.bench.process_state import process_state
from quantarena.bench.ship.save_pipeline import LISTS, check_target, save_pipeline
from quantarena.bench.ship.scored_row import scores_of
from quantarena.bench.spec import Cell
from quantarena.bench.stages.quantize import Progress, Quantized, quantized
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import Workspace, open_workspace
from quantarena.bench.workloads import registry
from quantarena.methods.contract import Method
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.packed.pack import PackedModel, observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.visits import on_host
from quantarena.methods.registry import method_entry

PARITY_ROWS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A request to quantize a model.

    Attributes:
        cell: workload, method, bits, seed and budget.
        folder: where the pipeline folder goes.
        cache: folder of cached stages; those that a run has computed are used again.
        plugins: absolute paths of plug-in files.
        command: the command that makes the same model again.
        replace: whether an earlier export may be overwritten.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.
    """

    cell: Cell
    folder: Path
    cache: Path
    plugins: tuple[str, ...]
    command: str
    replace: bool
    prefer_plugin: bool = False


@process_state()  # as in a run, so that both make the same codes
def quantize_model(order: Order, progress: Progress) -> dict[str, Any]:
    """Quantize and pack a model, check packed against simulated outputs, write the folder.

    Returns:
        The description of the packed network without its layers and tensors.

    Raises:
        UserError: the request cannot be met; the message says why.
        QuantArenaError: the method broke its contract, or failed.
    """
    cell = order.cell
    check_target(order.folder, replace=order.replace)
    found = method_entry(cell.method, order.plugins, prefer_plugin=order.prefer_plugin)
    method = found.configured(cell.options)
    try:
        method.check(cell.widths, cell.variant, cell.policy)
        if cell.target.offload:
            method.check_offload()
    except Unsupported as error:
        raise UserError(str(error)) from None
    refuse_lora(registry.resolve(cell.workload).lora, "quantize")
    sweep(order.cache)
    cache, workspace = StageCache(order.cache), open_workspace(cell)
    keyed, packed, gap = _quantize_and_pack(workspace, method, cell, cache, progress)
    quantization = keyed.value
    full = workspace.loaded.denoiser
    observed = observe(quantization.model, packed, full, quantization.budget)
    info = method.info
    meta = {
        "base_model": _base(workspace.info),
        "base_sha256": workspace.loaded.sha256,
        "method": cell.method,
        "title": info.title,
        "paper": "" if info.paper == "-" else info.paper,
        "method_version": info.version,
        "bits": cell.bits,
        "variant": cell.variant,
        "policy": cell.policy,
        "options": dict(cell.options),
        "seed": cell.seed,
        "samples": cell.budget.calibration_samples,
        "warnings": [*quantization.warnings, *packed.remarks()],
        "iterations": cell.budget.iterations,
        "calibration": {k: v for k, v in quantization.calibration.items() if k != "notes"},
        "parity": gap,
        "backend": packed.backend,
        "observed": {name: getattr(observed, name) for name in observed.__slots__},
        "scores": scores_of(order.cache.parent, keyed.key),
        "command": order.command,
    }
    document = save_pipeline(workspace, packed, order.folder, meta, replace=order.replace)
    return {name: value for name, value in document.items() if name not in LISTS}


def _quantize_and_pack(
    workspace: Workspace,
    method: Method,
    cell: Cell,
    cache: StageCache,
    progress: Progress,
) -> tuple[Keyed[Quantized], PackedModel, float]:
    """The quantized model with its key, the packed model, and the parity error."""
    recorded = trajectory(workspace, cache, lambda done, total: progress("record", done, total))
    try:
        keyed = quantized(workspace, recorded, cell, method, cache, progress)
    except Unsupported as error:
        raise UserError(str(error)) from None
    except QuantArenaError:
        raise
    except Exception as error:  # a plug-in may raise anything
        raise QuantArenaError(f"{cell.method} failed: {one_line(error)}") from error
    model = keyed.value.model
    if not model.layers:
        raise UserError(f"{cell.method} at {cell.bits} quantizes nothing: there is nothing to pack")
    progress("pack", 0, 1)
    packed = pack(model)
    rows = torch.arange(PARITY_ROWS)
    calls = torch.linspace(0, recorded.calls - 1, PARITY_ROWS).round().long()
    with on_host():  # the folder's layers are the CPU's; weights that visit a device stay home
        report = parity(model, packed, recorded.pick(calls, rows % recorded.rows))
    progress("pack", 1, 1)
    return keyed, packed, report.max_rel


def _base(info: registry.WorkloadInfo) -> str:
    """The name of the base model, never a path on somebody's disk."""
    return info.noise_name
