"""Refuses settings that a pipeline cannot use, before anything runs. No torch.

A plan knows the pipeline's class, whose arguments stand in the source of diffusers, and the
configuration files of its components. What only a loaded pipeline shows is refused when it loads
(``workloads.pipeline_checks``); the lines are the same.
"""

import ast
import json
from pathlib import Path
from typing import Any

from quantarena.bench.errors import UserError, did_you_mean
from quantarena.bench.workloads.pipeline_checks import native_side, require_classes, require_used
from quantarena.bench.workloads.pipeline_class import (
    SCHEDULERS,
    call_signature,
    class_name,
    class_source,
    method_signature,
)
from quantarena.bench.workloads.registry import INDEX, WorkloadInfo

_DENOISERS = ("unet", "transformer")
_DECODERS = ("vae", "vqvae")


def require_usable(info: WorkloadInfo) -> None:
    """Check the settings of a workload against the class and the configuration of its pipeline.

    A class that is not part of diffusers is not judged.

    Raises:
        UserError: one line that names the setting and what to do.
    """
    kind = class_name(info.path)
    signature = call_signature(kind) if kind else None
    if kind is None or signature is None:
        return
    denoiser, decoder = (_config(info.path, names) for names in (_DENOISERS, _DECODERS))
    require_used(kind, signature.names, native_side(denoiser, decoder), info)
    require_classes(denoiser, info)
    _require_conditions(kind, signature.names, signature.required, denoiser, info)
    _require_sampler(info)


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


def _require_sampler(info: WorkloadInfo) -> None:
    """Refuse a sampler that diffusers does not have or that does not fit, and eta without DDIM."""
    entry = _json(info.path / INDEX).get("scheduler")
    current = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
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


def _config(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The configuration of the first of these components that has one."""
    return next(filter(None, (_json(folder / name / "config.json") for name in names)), {})


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where the file holds none: loading says what is wrong with it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
