"""Loads a workload's pipeline and finds the network in it that gets quantized."""

import functools
import hashlib
import inspect
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantarena.bench.errors import BrokenModel, UserError, first_line
from quantarena.bench.workloads import hub
from quantarena.bench.workloads.pipeline_checks import (
    draws_by_itself,
    require_classes,
    require_settings,
    several_denoisers,
    too_long,
)
from quantarena.bench.workloads.pipeline_hash import pipeline_sha256
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.row_lists import stack_rows, takes_lists
from quantarena.bench.workloads.samplers import with_sampler

FILTER = "safety_checker"
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)[.-]")


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A pipeline in fp32, and the network inside it that gets quantized.

    Attributes:
        pipe: the diffusers pipeline.
        slot: attribute that holds the denoiser, such as ``unet`` or ``transformer``.
        sha256: hash of all weight and configuration files and of the sampler.
        notes: lines for the reader of a row.
    """

    pipe: Any
    slot: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def denoiser(self) -> nn.Module:
        """The network now in the slot."""
        module: nn.Module = getattr(self.pipe, self.slot)
        return module

    def put(self, denoiser: nn.Module) -> None:
        """Replace the network in the slot."""
        setattr(self.pipe, self.slot, denoiser)


def load(info: WorkloadInfo) -> LoadedPipeline:
    """Load a workload's pipeline in fp32 on the CPU, with the workload's sampler.

    The safety checker is left out: whether it blacks out an image depends on the quantization.

    Raises:
        BrokenModel: files are damaged, or there is no denoiser.
        UserError: the sampler does not fit the model, or a class is out of range.
    """
    sha256 = pipeline_sha256(info.path)
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"variant": variant_of(info.path)}
    if FILTER in hub.components(info.path):
        options[FILTER] = None
    try:
        pipe = DiffusionPipeline.from_pretrained(
            str(info.path), dtype=torch.float32, local_files_only=True, **options
        )
    except Exception as error:
        raise BrokenModel(
            f"{info.path} does not load as a diffusers pipeline: {first_line(error)}"
        ) from None
    slot = find_slot(pipe, str(info.path))
    if info.sampler or info.sampler_options:
        pipe = with_sampler(pipe, info.sampler, info.sampler_options, info.name)
        # Another sampler draws other images, as another configuration file does.
        told = "".join(f"/{name}={value}" for name, value in info.sampler_options)
        made = f"{sha256}/{type(pipe.scheduler).__name__}{told}"
        sha256 = hashlib.sha256(made.encode()).hexdigest()
    if noise := draws_by_itself(type(getattr(pipe, "scheduler", None)).__name__):
        raise UserError(f"{info.name}: sampler {type(pipe.scheduler).__name__} {noise}")
    stack_rows(getattr(pipe, slot))
    require_settings(pipe, getattr(pipe, slot), info)
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    loaded = LoadedPipeline(pipe, slot, sha256, too_long(pipe, info))
    require_classes(getattr(loaded.denoiser, "config", {}), info)
    for note in loaded.notes:
        _say(info.name, note)
    return loaded


@functools.cache
def _say(name: str, note: str) -> None:
    """Log a warning once per process; every cell loads its workload again."""
    logging.getLogger(__name__).warning("warning: workload %s: %s", name, note)


def find_slot(pipe: Any, where: str) -> str:
    """The name of the component that gets quantized: the network that takes a timestep.

    Raises:
        BrokenModel: there is none, or there are several and none has a usual name.
    """
    parts: dict[str, Any] = pipe.components
    networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    found = [n for n, part in networks.items() if _takes_timestep(part)]
    chosen = next((name for name in hub.USUAL_SLOTS if name in found), None)
    if chosen is not None:  # others are control networks, unless they have the same class
        found = [n for n in found if type(networks[n]) is type(networks[chosen])]
    if not found:
        held = ", ".join(networks) or "no network at all"
        raise BrokenModel(f"{where} has no denoiser to quantize: it holds {held}")
    if len(found) > 1:
        raise several_denoisers(where, found)
    return found[0]


def _takes_timestep(network: nn.Module) -> bool:
    return "timestep" in inspect.signature(network.forward).parameters or takes_lists(network)


def variant_of(folder: Path) -> str | None:
    """The variant of the weights, such as ``fp16``, if a component has no other weights."""
    found: set[str] = set()
    for part in (f for f in folder.iterdir() if f.is_dir()):
        weights = [f.name for f in part.iterdir() if f.suffix in hub.WEIGHTS]
        marks = [_VARIANT.search(name) for name in weights]
        if marks and all(marks):
            found |= {mark[1] for mark in marks if mark}
    return min(found) if found else None
