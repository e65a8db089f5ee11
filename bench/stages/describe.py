"""What a row says of its method and of its workload."""

from dataclasses import asdict
from typing import Any

from quantarena.bench.adapters.drawing import facts
from quantarena.bench.closure import method_closure
from quantarena.bench.stages.workspace import Workspace
from quantarena.bench.workloads.inputs.arguments import values
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.sampling import Drawn, condition
from quantarena.methods.core.kernels.native import status
from quantarena.methods.registry import RegisteredMethod
from quantarena.methods.rival import Rival

SHOWN_PROMPTS = 64
"""Conditions that a row repeats, for captions of its gallery."""


def describe_method(found: RegisteredMethod) -> dict[str, Any]:
    """The method's name, source and code, and the kernels that run it; a rival's library."""
    info = found.method.info
    rival = {"rival": True, "url": info.url, "licence": info.licence}
    return {
        "title": info.title,
        "venue": info.venue,
        "paper": info.paper,
        "summary": info.summary,
        "version": info.version,
        "deviations": list(info.deviations),
        "origin": found.origin,
        "code_sha256": method_closure(found.method).key,
        "kernels": str(status()),
        **(rival if issubclass(found.method, Rival) else {}),
    }


def describe_workload(workspace: Workspace, drawn: Drawn) -> dict[str, Any]:
    """The pipeline, its sampler's settings and its first conditions."""
    info, pipe = workspace.info, workspace.loaded.pipe
    return {
        "title": info.title,
        "model_sha256": workspace.loaded.sha256,
        "pipeline": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "steps": workspace.steps,
        "guidance": info.guidance,
        "eta": info.eta,
        "resolution": int(drawn.images.shape[-1]),
        "images": drawn.count,
        "batch": workspace.draw().batch,
        "conditions": info.conditions,
        "prompts": [condition(info, "evaluate", i) for i in range(SHOWN_PROMPTS)]
        if info.prompts
        else [],
        "reference": info.reference,
        "licence": info.licence,
        "noise_sha256": drawn.noise_sha256,
        **({"lora": asdict(facts(info.lora))} if info.lora else {}),
        **_given(info, drawn),
    }


def _given(info: WorkloadInfo, drawn: Drawn) -> dict[str, Any]:
    """What a workload gives beside conditions, and how many frames its videos have."""
    found: dict[str, Any] = {}
    if drawn.frames:
        found["frames"] = drawn.frames
    found |= {f"call.{name}": value for name, value in values(info.call).items()}
    found |= {f"sampler.{name}": value for name, value in values(info.sampler_options).items()}
    if info.inputs:
        found["inputs"] = {
            each.setting: f"{len(each.files)} images, sha256 {each.sha256[:12]}"
            for each in info.inputs
        }
    return found
