"""Checks of a pipeline against its workload: settings, prompts, classes, samplers. No torch."""

import ast
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantarena.bench.errors import BrokenModel, UserError
from quantarena.bench.workloads import workload_name
from quantarena.bench.workloads.inputs import arguments
from quantarena.bench.workloads.inputs.kinds import ImageNeeds, image_needs, require_folders
from quantarena.bench.workloads.pipeline_class import (
    SCHEDULERS,
    CallSignature,
    class_source,
    needs_of,
)
from quantarena.bench.workloads.registry import WorkloadInfo

if TYPE_CHECKING:  # a plan makes these checks too, and imports no torch
    from torch import nn

CLASS_COUNTS = ("num_embeds_ada_norm", "num_class_embeds", "num_classes")
"""The entries of a network's configuration that may hold its number of classes."""


def too_long(pipe: Any, info: WorkloadInfo) -> tuple[str, ...]:
    """One line for each tokenizer that truncates prompts of the workload."""
    if info.conditions != "prompt":
        return ()
    parameter = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    asked = arguments.values(info.call).get("max_sequence_length", parameter and parameter.default)
    most = asked if isinstance(asked, int) else math.inf
    notes = []
    for name, tokenizer in pipe.components.items():
        limit = min(getattr(tokenizer, "model_max_length", 0), most)
        if not callable(tokenizer) or limit < 1:
            continue
        # A token has at least one character, so short prompts need no counting.
        counts = [len(tokenizer(p).input_ids) for p in info.prompts if len(p) >= limit - 2]
        cut = [count for count in counts if count > limit]
        if cut:
            notes.append(
                f"{len(cut)} of {len(info.prompts)} prompts are longer than the {limit} tokens of "
                f"{name} (up to {max(cut)}): what follows is cut off"
            )
    return tuple(notes)


def require_settings(pipe: Any, denoiser: "nn.Module", info: WorkloadInfo) -> None:
    """Check that the pipeline uses every setting of the workload that is not at its default.

    Raises:
        UserError: the pipeline would ignore a setting, which would be in every row and key.
    """
    takes = signature_of(pipe)
    kind = type(pipe).__name__
    needs = needs_of(kind) or image_needs(takes.names, takes.required)
    vae = pipe.components.get("vae") or pipe.components.get("vqvae")
    side = native_side(*(getattr(part, "config", {}) for part in (denoiser, vae)))
    require_used(kind, takes, needs, side, info)


def signature_of(pipe: Any) -> CallSignature:
    """The signature of a loaded pipeline's call."""
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(pipe.__call__).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    plain = {n: d for n, d in given.items() if type(d) in arguments.PLAIN}
    required = [n for n, d in given.items() if d is inspect.Parameter.empty]
    return CallSignature(tuple(given), tuple(required), plain)


def require_used(
    kind: str, signature: CallSignature, needs: ImageNeeds, native: int, info: WorkloadInfo
) -> None:
    """The checks of ``require_settings``, on what a plan knows too.

    Args:
        kind: class of the pipeline.
        signature: of its call.
        needs: the condition images that it takes.
        native: side in pixels of the images that it draws by itself; 0 if that is unknown.
        info: the workload.

    Raises:
        UserError: as ``require_settings``.
    """
    takes = signature.names
    require_folders(kind, needs, [each.setting for each in info.inputs], info.name)
    arguments.require_arguments(kind, takes, signature.defaults, info.call, info.name)
    if info.guidance not in (0.0, 1.0) and "guidance_scale" not in takes:
        raise UserError(f"{info.name}: {kind} takes no guidance: leave it out, or set guidance=1")
    if info.conditions == "class" and "class_labels" not in takes:
        other = "prompts" if "prompt" in takes else "noise alone"
        hint = "give prompts=FILE" if "prompt" in takes else "leave classes out"
        raise UserError(f"{info.name}: {kind} takes no classes, it draws from {other}: {hint}")
    if info.conditions == "prompt" and "prompt" not in takes:
        if "class_labels" not in takes:
            raise UserError(
                f"{info.name}: {kind} takes no prompts, it draws from noise alone: leave them out"
            )
        if words := [text for text in info.prompts if not text.isdecimal()]:
            raise UserError(
                f"{info.name} draws from class numbers, {words[0]!r} is none: give classes=0-9, "
                "for example"
            )
    # A paper's setting states the side of its own model, and another may stand in for that.
    stated = not info.hub or "resolution" in workload_name.split(info.name)[1]
    images = bool(info.inputs)  # they have the size of what is drawn
    if (
        stated
        and not images
        and "height" not in takes
        and native
        and info.resolution not in (0, native)
    ):
        raise UserError(
            f"{info.name}: {kind} draws {native} pixels a side and takes no other resolution than "
            f"that, not {info.resolution}"
        )


def native_side(denoiser: Mapping[str, Any], decoder: Mapping[str, Any]) -> int:
    """The side in pixels that two configurations imply; 0 if it is unknown."""
    side = denoiser.get("sample_size")
    channels = decoder.get("block_out_channels") or (0,)
    return side * 2 ** (len(channels) - 1) if isinstance(side, int) else 0


def require_classes(config: Mapping[str, Any], info: WorkloadInfo) -> None:
    """Check that the network with this configuration knows every class of the workload.

    Raises:
        UserError: a class is out of range, or no number.
    """
    if info.conditions != "class":
        return
    known = next((config[n] for n in CLASS_COUNTS if config.get(n)), None)
    for text in info.prompts:
        if not text.strip().isdecimal():
            raise UserError(f"{info.name}: {text!r} is no class number")
        if known is not None and int(text) >= known:
            raise UserError(
                f"{info.name}: class {text} is out of range, the model has 0 to {known - 1}"
            )


def several_denoisers(where: str, found: Sequence[str]) -> BrokenModel:
    """The error for experts that share the sampler's calls, as those of Wan 2.2 do."""
    return BrokenModel(
        f"{where} has several denoisers ({', '.join(found)}), and one is supported: quantizing one "
        "of two experts would be half a result"
    )


def draws_by_itself(scheduler: str) -> str | None:
    """Why the fresh noise of a class of scheduler is not its images' own; None where it is.

    Others are asked while they draw, see ``samplers.stepping``.
    """
    found = class_source(scheduler, SCHEDULERS)
    names = {n.id for n in ast.walk(found) if isinstance(n, ast.Name)} if found else set()
    if not any("Brownian" in name for name in names):
        return None
    return (
        "takes its fresh noise from one Brownian tree for a whole batch, so an image would depend "
        "on its batch: set sampler=DPMSolverMultistep, for example"
    )
