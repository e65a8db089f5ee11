"""Refuses settings that a pipeline cannot use, before anything runs. No torch.

A plan knows the pipeline's class, whose arguments stand in the source of diffusers, and the
configuration files of its components. What only a loaded pipeline shows is refused when it loads
(``workloads.pipeline_checks``); the lines are the same.
"""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantarena.bench.errors import BrokenModel, UserError, did_you_mean
from quantarena.bench.workloads.hub import parts_of
from quantarena.bench.workloads.inputs import arguments
from quantarena.bench.workloads.inputs.kinds import image_needs
from quantarena.bench.workloads.pipeline_checks import (
    CLASS_COUNTS,
    draws_by_itself,
    native_side,
    require_classes,
    require_used,
    several_denoisers,
)
from quantarena.bench.workloads.pipeline_class import (
    SCHEDULERS,
    call_signature,
    class_name,
    class_source,
    method_signature,
    missing_library,
    needs_of,
)
from quantarena.bench.workloads.pipeline_hash import require_files
from quantarena.bench.workloads.registry import INDEX, WorkloadInfo
from quantarena.methods.core.json_files import read_object

_DENOISERS = ("unet", "transformer")
_DECODERS = ("vae", "vqvae")
_SCHEDULER = "scheduler"


def require_usable(info: WorkloadInfo, *, packed: bool = False) -> None:
    """Check the settings of a workload against the class and the configuration of its pipeline.

    A class that is not part of diffusers is not judged.

    Args:
        info: the workload.
        packed: take an export of ours, too.

    Raises:
        UserError: one line that names the setting and what to do.
        BrokenModel: a file of the pipeline is damaged; the line names it.
    """
    kind = class_name(info.path)
    if kind is None:
        return
    require_files(info.path)
    index = read_object(info.path / INDEX)
    configs = _configs(index, info.path)
    signature = call_signature(kind)
    if signature is None:
        return
    for name in _DENOISERS:
        held = configs.get(name, {}).get("quantization_config")
        ours = isinstance(held, dict) and held.get("quant_method") == "quantarena"
        if held is not None and not (packed and ours):
            raise UserError(
                f"{info.path}: its {name} is quantized already, and a workload is full precision: "
                f"score it with quantarena run --workload {info.path} --against BASE, where BASE "
                "is the workload that it was made from"
            )
    denoiser, decoder = (
        next(filter(None, map(configs.get, names)), {}) for names in (_DENOISERS, _DECODERS)
    )
    needs = needs_of(kind) or image_needs(signature.names, signature.required)
    require_used(kind, signature, needs, native_side(denoiser, decoder), info)
    _require_one_denoiser(kind, index, info)
    require_classes(denoiser, info)
    _require_conditions(kind, signature.names, signature.required, denoiser, info)
    _require_sampler(index, info)


def _require_conditions(
    kind: str,
    takes: tuple[str, ...],
    required: tuple[str, ...],
    denoiser: dict[str, Any],
    info: WorkloadInfo,
) -> None:
    """Refuse a workload without prompts or classes where its pipeline draws from them."""
    if info.prompts:
        return
    labels = "class_labels"
    if "prompt" in takes:
        raise UserError(
            f"{info.name}: {kind} draws from prompts, and the workload names none: give their file "
            "with --set prompts=FILE"
        )
    if labels in takes and (labels in required or denoiser.get("num_class_embeds")):
        raise UserError(
            f"{info.name}: {kind} draws from classes, and the workload names none: give them with "
            "--set classes=0-9, for example"
        )


def _require_one_denoiser(kind: str, index: dict[str, Any], info: WorkloadInfo) -> None:
    """Refuse two experts, such as Wan 2.2's: one for many, one for few noise."""
    for name in _DENOISERS:
        parts = [p for p in parts_of(index) if p == name or p.startswith(f"{name}_")]
        same = [p for p in parts if index[p] == index.get(name)]
        if len(same) > 1:
            raise several_denoisers(f"{info.name}: {kind}", same)


def _require_sampler(index: dict[str, Any], info: WorkloadInfo) -> None:
    """Refuse a sampler that is missing, does not fit or lacks a library, and eta without DDIM."""
    current = index.get(_SCHEDULER, [None, None])[1]
    if not isinstance(current, str) or class_source(current, SCHEDULERS) is None:
        return
    chosen, fitting = current, {current, *_compatible(current)}
    if info.sampler:
        chosen = info.sampler + "Scheduler" * (not info.sampler.endswith("Scheduler"))
        if chosen not in fitting:
            known = class_source(chosen, SCHEDULERS)
            what = f"unknown sampler {info.sampler!r}"
            if known is not None:
                what = f"sampler {info.sampler!r} does not fit"
            raise UserError(
                f"{info.name}: {what} in place of {current}: {did_you_mean(chosen, fitting)}"
            )
    if library := missing_library(chosen, SCHEDULERS):
        raise UserError(
            f"{info.name}: sampler {chosen} needs the library {library}, which is not installed"
        )
    if noise := draws_by_itself(chosen):
        raise UserError(f"{info.name}: sampler {chosen} {noise}")
    made = method_signature(chosen, "__init__", SCHEDULERS)
    if made is not None:
        arguments.require_options(
            chosen, made.names, made.defaults, info.sampler_options, info.name
        )
    step = method_signature(chosen, "step", SCHEDULERS)
    if info.eta and step is not None and "eta" not in step.names:
        other = ", or set sampler=DDIM" if "DDIMScheduler" in fitting else ""
        raise UserError(f"{info.name}: {chosen} takes no eta: leave it 0{other}")


def _compatible(name: str) -> list[str]:
    """The samplers that may replace one: a list of names in its class, or those of an enum."""
    found = class_source(name, SCHEDULERS)
    for item in found.body if found else ():
        if not isinstance(item, ast.Assign) or not isinstance(item.targets[0], ast.Name):
            continue
        if item.targets[0].id != "_compatibles":
            continue
        if isinstance(item.value, ast.List):
            texts = (e.value for e in item.value.elts if isinstance(e, ast.Constant))
            return [text for text in texts if isinstance(text, str)]
        if isinstance(item.value, ast.ListComp):
            source = item.value.generators[0].iter
            return _members(source.id) if isinstance(source, ast.Name) else []
    return []


def _members(enum: str) -> list[str]:
    found = class_source(enum, SCHEDULERS)
    values = (item for item in (found.body if found else ()) if isinstance(item, ast.Assign))
    return [target.id for v in values if isinstance(target := v.targets[0], ast.Name)]


def _configs(index: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations of a pipeline's components by name, {} where one has none.

    A missing file is left to loading; one that cannot be read, or that holds a value of another
    type than its reader expects, is refused here.

    Raises:
        BrokenModel: one line that names the file.
    """
    for name in (*_DENOISERS, *_DECODERS, _SCHEDULER):
        entry = index.get(name, [None, None])
        kinds = [*map(type, entry)] if isinstance(entry, list) else []
        if len(kinds) != 2 or not {*kinds} <= {str, type(None)}:
            raise BrokenModel(f"{folder / INDEX} does not say library and class of its {name}")
    found = {}
    for name in parts_of(index):
        file = folder / name / ("scheduler_config.json" if name == _SCHEDULER else "config.json")
        try:
            found[name] = read_object(file, constants=True)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for key, (fits, what) in _TYPES.get(name, {}).items():
            if (value := found[name].get(key)) is not None and not fits(value):
                raise BrokenModel(f"{file}: {key} must be {what}, not {value!a:.60}")
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_whole(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_whole, value))


def _is_side(value: Any) -> bool:
    return _is_whole(value) or _are_whole(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_Type = tuple[Callable[[Any], bool], str]
_CLASS: dict[str, _Type] = {"_class_name": (_is_text, "a text")}
_NETWORK = _CLASS | {"sample_size": (_is_side, "a number of pixels")}
_DENOISER = _NETWORK | {n: (_is_whole, "a number of classes") for n in CLASS_COUNTS}
_DECODER = _NETWORK | {"block_out_channels": (_are_whole, "a list of numbers of channels")}
_TYPES: dict[str, dict[str, _Type]] = {
    _SCHEDULER: _CLASS | {"num_train_timesteps": (_is_whole, "a number of steps")},
    **dict.fromkeys(_DENOISERS, _DENOISER),
    **dict.fromkeys(_DECODERS, _DECODER),
}
"""By component, the entries that a plan or a sampler counts with; null stands for none of them."""
