"""Loading a workload's pipeline and checking that its files are whole."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantarena.bench.workloads.registry import SETTINGS, WorkloadInfo
from quantarena.methods.core.errors import BrokenModel

MANIFEST = "manifest.json"
_WEIGHTS = (".safetensors", ".bin")
_CONFIGS = (".json", ".txt", ".model")
_ASIDE = (MANIFEST, SETTINGS)


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A pipeline in fp32 on its device, and the network inside it that gets quantized.

    Attributes:
        pipe: the diffusers pipeline.
        slot: attribute that holds the denoiser, ``unet`` or ``transformer``.
        sha256: over all weight and configuration files.
    """

    pipe: Any
    slot: str
    sha256: str

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
    """Load a workload's pipeline in fp32 for the CPU.

    Raises:
        BrokenModel: damaged files, or no denoiser inside; one line.
    """
    sha256 = pipeline_sha256(info.path)
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    diffusers_logging.disable_progress_bar()
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        pipe = DiffusionPipeline.from_pretrained(
            str(info.path), dtype=torch.float32, local_files_only=True
        )
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise BrokenModel(
            f"{info.path} does not load as a diffusers pipeline: {first[0]}"
        ) from None
    pipe.set_progress_bar_config(disable=True)
    slot = next((name for name in ("unet", "transformer") if getattr(pipe, name, None)), None)
    if slot is None:
        raise BrokenModel(f"{info.path} has no unet and no transformer to quantize")
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    return LoadedPipeline(pipe, slot, sha256)
