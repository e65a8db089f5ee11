"""Loading a workload's pipeline and checking that its files are whole."""

import functools
import hashlib
import inspect
import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantarena.bench.errors import BrokenModel, UserError, first_line
from quantarena.bench.workloads import hub
from quantarena.bench.workloads.registry import SETTINGS, WorkloadInfo
from quantarena.bench.workloads.samplers import with_sampler

MANIFEST = "manifest.json"
_WEIGHTS = (".safetensors", ".bin")
_CONFIGS = (".json", ".txt", ".model")
_ASIDE = (MANIFEST, SETTINGS)
USUAL_SLOTS = ("unet", "transformer")
FILTER = "safety_checker"
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)[.-]")
_CLASS_COUNTS = ("num_embeds_ada_norm", "num_class_embeds", "num_classes")
"""Where configurations of networks keep how many classes they know."""


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A pipeline in fp32 on its device, and the network inside it that gets quantized.

    Attributes:
        pipe: the diffusers pipeline.
        slot: attribute that holds the denoiser, such as ``unet`` or ``transformer``.
        sha256: over all weight and configuration files, and the sampler put in place.
        notes: lines worth a reader's attention.
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
        """Put another network in the slot."""
        setattr(self.pipe, self.slot, denoiser)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pipeline_sha256(folder: Path) -> str:
    """One hash of a pipeline folder's weights and configurations, checked against its manifest.

    The sampler's and the networks' configurations are in it, since they decide the images as much
    as the weights do. The workload's settings are not: what matters of them enters keys by itself.

    Raises:
        BrokenModel: no weight file, or one that differs from the manifest.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix in _WEIGHTS and f.is_file())
    if not files:
        raise BrokenModel(f"{folder} holds no weights (no .safetensors file)")
    found = {str(file.relative_to(folder)): _digest(file) for file in files}
    for name, expected in _manifest(folder).items():
        actual = found.get(name) or (
            _digest(folder / name) if (folder / name).is_file() else "missing"
        )
        if actual != expected:
            raise BrokenModel(
                f"{folder / name} is damaged: sha256 {actual[:12]}, the manifest says "
                f"{expected[:12]}; install again or restore the file"
            )
    configs = (f for f in folder.rglob("*") if f.suffix in _CONFIGS and f.is_file())
    found |= {str(f.relative_to(folder)): _digest(f) for f in configs if f.name not in _ASIDE}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, str]:
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text())
        files = data.get("files", data)
        return {
            str(name): str(value["sha256"] if isinstance(value, dict) else value)
            for name, value in files.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenModel(f"{file} cannot be read: {error}") from None


def load(info: WorkloadInfo) -> LoadedPipeline:
    """Load a workload's pipeline in fp32 for the CPU, its sampler put in place.

    A filter that blacks out images is left out: whether it fires depends on the quantization.

    Raises:
        BrokenModel: damaged files, or no denoiser inside; one line.
        UserError: the sampler does not fit, or a class is out of range.
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
    if info.sampler:
        pipe = with_sampler(pipe, info.sampler)
        # another sampler draws other images, as another configuration file would
        sha256 = hashlib.sha256(f"{sha256}/{type(pipe.scheduler).__name__}".encode()).hexdigest()
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    loaded = LoadedPipeline(pipe, slot, sha256, too_long(pipe, info))
    require_classes(loaded.denoiser, info)
    for note in loaded.notes:
        _say(info.name, note)
    return loaded


@functools.cache
def _say(name: str, note: str) -> None:
    """A warning on stderr, once a process though every cell loads its workload."""
    logging.getLogger(__name__).warning("warning: workload %s: %s", name, note)


def find_slot(pipe: Any, where: str) -> str:
    """The component that gets quantized: the network that is told the timestep.

    Raises:
        BrokenModel: there is none, or there are several and none is called as usual.
    """
    parts: dict[str, Any] = pipe.components
    networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    found = [n for n, part in networks.items() if _takes_timestep(part)]
    chosen = next((name for name in USUAL_SLOTS if name in found), None)
    if chosen is not None:  # others are control networks, unless they are more of the same kind
        found = [n for n in found if type(networks[n]) is type(networks[chosen])]
    if not found:
        held = ", ".join(networks) or "no network at all"
        raise BrokenModel(f"{where} has no denoiser to quantize: it holds {held}")
    if len(found) > 1:
        raise BrokenModel(f"{where} has several denoisers ({', '.join(found)}): one is supported")
    return found[0]


def _takes_timestep(network: nn.Module) -> bool:
    return "timestep" in inspect.signature(network.forward).parameters


def variant_of(folder: Path) -> str | None:
    """The variant, such as ``fp16``, where a component has weights in no other form."""
    found: set[str] = set()
    for part in (f for f in folder.iterdir() if f.is_dir()):
        weights = [f.name for f in part.iterdir() if f.suffix in _WEIGHTS]
        marks = [_VARIANT.search(name) for name in weights]
        if marks and all(marks):
            found |= {mark[1] for mark in marks if mark}
    return min(found) if found else None


def too_long(pipe: Any, info: WorkloadInfo) -> tuple[str, ...]:
    """A line for each tokenizer that cuts prompts of the workload off; empty if none does."""
    if info.conditions != "prompt":
        return ()
    parameter = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    most = parameter.default if parameter and isinstance(parameter.default, int) else math.inf
    notes = []
    for name, tokenizer in pipe.components.items():
        limit = min(getattr(tokenizer, "model_max_length", 0), most)
        if not callable(tokenizer) or limit < 1:
            continue
        # a token is a character at least, so short prompts need not be counted
        counts = [len(tokenizer(p).input_ids) for p in info.prompts if len(p) >= limit - 2]
        cut = [count for count in counts if count > limit]
        if cut:
            notes.append(
                f"{len(cut)} of {len(info.prompts)} prompts are longer than the {limit} tokens of "
                f"{name} (up to {max(cut)}): what follows is cut off"
            )
    return tuple(notes)


def require_classes(denoiser: nn.Module, info: WorkloadInfo) -> None:
    """See that the network knows every class of the workload.

    Raises:
        UserError: one is out of range, or no number.
    """
    if info.conditions != "class":
        return
    config = getattr(denoiser, "config", {})
    known = next((config[n] for n in _CLASS_COUNTS if config.get(n)), None)
    for text in info.prompts:
        if not text.strip().isdecimal():
            raise UserError(f"{info.name}: {text!r} is no class number")
        if known is not None and int(text) >= known:
            raise UserError(
                f"{info.name}: class {text} is out of range, the model has 0 to {known - 1}"
            )
