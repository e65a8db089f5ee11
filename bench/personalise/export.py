"""Tunes a workload or an exported model to subjects, and writes an export: the verb ``tune``."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from quantarena.bench.adapters.drawing import refuse_lora
from quantarena.bench.errors import UserError
from quantarena.bench.personalise.lesson import NoiseLoss, examples
from quantarena.bench.personalise.personalise import float_widths, packed_for, personalise
from quantarena.bench.personalise.subject import Subject, check_tokens, read_subject
from quantarena.bench.process_state import process_state
from quantarena.bench.ship.pipeline_folder import open_exported
from quantarena.bench.ship.save_pipeline import LISTS, check_target, save_pipeline
from quantarena.bench.spec import Budget
from quantarena.bench.stages.workspace import Workspace
from quantarena.bench.target import DEFAULT_TARGET, Target
from quantarena.bench.workloads import pipeline, registry
from quantarena.bench.workloads.outliers.plant import with_outliers
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.methods.core.bits import FP_WIDTH
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.network import tensor_bytes
from quantarena.methods.core.packed.diffusers_layout import packed_folders
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.tuning import Recipe

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""
_EDGE = 20
"""Updates at either end whose mean loss is told."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request to personalise a model.

    Attributes:
        workload: name of a workload, or the folder of an export.
        subjects: folder, token and prompt of each subject.
        bits: widths of a float workload's weights; None for an export, which has its own.
        recipe: how it is tuned.
        steps: sampler steps of the result; 0 for the workload's own.
        seed: seed of noise and timesteps.
        folder: where the export goes.
        replace: whether an earlier export may be overwritten.
        command: the command that makes the same model again.
        target: the device that the network learns on.
    """

    workload: str
    subjects: tuple[tuple[Path, str, str], ...]
    bits: str | None
    recipe: Recipe
    steps: int
    seed: int
    folder: Path
    replace: bool
    command: str
    target: Target = DEFAULT_TARGET


@dataclass(frozen=True, slots=True)
class _Opened:
    """A pipeline with what its denoiser is tuned from."""

    info: WorkloadInfo
    loaded: LoadedPipeline
    packed: PackedModel | None
    meta: Mapping[str, Any]


@process_state()
def tune_model(order: Order, progress: Progress) -> dict[str, Any]:
    """Tune, pack and write; the target appears whole, or not at all.

    Returns:
        The description of the packed network without its layers and tensors.

    Raises:
        UserError: the request cannot be met; the message says why.
    """
    check_target(order.folder, replace=order.replace)
    _require_place(order.target)
    progress("load", 0, 1)
    opened = _open(order)
    info, loaded, recipe = opened.info, opened.loaded, order.recipe
    subjects = [read_subject(*given, info.resolution) for given in order.subjects]
    for subject in subjects:
        check_tokens(loaded.pipe, subject)
    lessons = examples(loaded, info, subjects)
    loss = NoiseLoss(loaded.pipe.scheduler, lessons, recipe.accumulate, order.seed)
    source = opened.packed or float_widths(loaded, loss, order.bits or "")
    fp_bytes = opened.meta.get("fp_bytes") or tensor_bytes(loaded.denoiser)
    began = time.perf_counter()
    progress("tune", 0, recipe.updates)
    tuning = personalise(
        loaded,
        source,
        loss,
        recipe,
        order.seed,
        lambda done, total: progress("tune", done, total),
        torch.device(order.target.device),
    )
    seconds, trainable = time.perf_counter() - began, tuning.network.trainable
    steps = order.steps or info.steps
    progress("pack", 0, 1)
    packed = packed_for(tuning, loaded, steps)
    loaded.put(packed.module)
    described = {
        "loss_first": _mean(tuning.losses[:_EDGE]),
        "loss_last": _mean(tuning.losses[-_EDGE:]),
        "seconds": round(seconds, 1),
        "trainable": trainable,
        "memory": asdict(tuning.memory),
    }
    meta = _meta(order, opened, packed, subjects, fp_bytes) | {"tuning": described}
    info = replace(info, prompts=tuple(subject.prompt for subject in subjects))
    workspace = Workspace(info, loaded, order.seed, Budget(steps=steps))
    document = save_pipeline(workspace, packed, order.folder, meta, replace=order.replace)
    progress("pack", 1, 1)
    return {name: value for name, value in document.items() if name not in LISTS}


def _require_place(target: Target) -> None:
    """Refuse places where a network cannot learn as a whole.

    Raises:
        UserError: the line says what can be done.
    """
    if target.offload:
        raise UserError(
            "tune learns the whole network at once, and --offload has one block of it on the "
            "device: leave --offload out, or leave out --device too, to learn on the CPU"
        )
    if target.kind == "mps":
        raise UserError("tune learns on cpu and cuda, not on mps: leave --device out")


def _open(order: Order) -> _Opened:
    info = registry.resolve(order.workload)
    refuse_lora(info.lora, "tune")
    if not packed_folders(info.path):
        if order.bits is None:
            raise UserError(f"{order.workload} has float weights: say --bits, such as --bits w4a16")
        loaded = with_outliers(pipeline.load(info), info)
        return _Opened(info, loaded, None, {"base_model": info.noise_name})
    if order.bits is not None:
        raise UserError(f"{order.workload} is packed already: leave --bits out")
    exported = open_exported(info.path)
    kept = ("base_model", "base_sha256", "bits", "method")
    meta = {name: exported.meta[name] for name in kept if name in exported.meta}
    meta["fp_bytes"] = exported.meta.get("observed", {}).get("fp_bytes")
    exported.loaded.pipe.set_progress_bar_config(disable=True)
    return _Opened(info, exported.loaded, exported.packed, meta)


def _meta(
    order: Order,
    opened: _Opened,
    packed: PackedModel,
    subjects: Sequence[Subject],
    fp_bytes: int,
) -> dict[str, Any]:
    """What the export says about itself."""
    bits = order.bits or str(opened.meta.get("bits", ""))
    size = packed.bytes()
    observed = {
        "weight_bits": 32 * size / fp_bytes,
        "act_bits": float(FP_WIDTH),
        "packed_bytes": size,
        "fp_bytes": fp_bytes,
        "layers": len(packed.layers),
    }
    recipe = order.recipe
    options: dict[str, float] = {"updates": recipe.updates, "accumulate": recipe.accumulate}
    if recipe.pairs > 1:
        options["experts"] = recipe.pairs
    if recipe.lr is not None or recipe.published:
        options["lr"] = recipe.rate
    return {
        "base_model": opened.meta["base_model"],
        "base_sha256": opened.meta.get("base_sha256", opened.loaded.sha256),
        "method": recipe.approach.value,
        "title": f"{recipe.approach.name_for_readers}, personalised",
        "paper": recipe.approach.paper,
        "bits": bits,
        "policy": UNIFORM.name,
        "options": options,
        "seed": order.seed,
        "subjects": [
            {"token": s.token, "prompt": s.prompt, "images": len(s.images)} for s in subjects
        ],
        "backend": packed.backend,
        "observed": observed,
        "warnings": [],
        "command": order.command,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
