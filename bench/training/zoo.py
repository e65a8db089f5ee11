"""The zoo's models by name: their tasks, training presets and export."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL

from quantarena.bench.training.cifar import CifarTask, LargeCifarTask
from quantarena.bench.training.dit import DitTask
from quantarena.bench.training.loop import LoopConfig, Task, averaged, load_checkpoint
from quantarena.bench.training.t2i import TextToImageTask
from quantarena.bench.training.vae import DecoderTask, VaeTask, images_tensor, whiten

__all__ = ["MODELS", "PRESETS", "export", "load_vae", "make_task", "zoo_dir"]

PRESETS = {
    "vae": LoopConfig(batch=32, lr=2e-3, ema=0.995),
    "vae-decoder": LoopConfig(batch=32, lr=1e-3, ema=0.995),
    "emoji-t2i": LoopConfig(batch=48, lr=1.5e-3, ema=0.998),
    "emoji-dit": LoopConfig(batch=64, lr=1e-3, ema=0.998),
    "cifar10-uncond": LoopConfig(batch=32, lr=1e-3, ema=0.998),
    "cifar10-uncond-large": LoopConfig(batch=32, lr=4e-4, warmup=300, ema=0.9995),
}
MODELS = tuple(PRESETS)


def zoo_dir() -> Path:
    """Returns the folder of the committed models."""
    return Path(__file__).resolve().parents[1] / "workloads" / "zoo"


def load_vae(runs: Path, device: str = "cpu") -> AutoencoderKL:
    """Returns the trained autoencoder with whitened latents.

    Args:
        runs: Folder of the training runs; its `vae` part holds the checkpoint, `vae-decoder` that
            of a decoder that was trained further, if any.
        device: torch device.

    Raises:
        FileNotFoundError: The autoencoder has not been trained there.
    """
    state = load_checkpoint(runs / "vae")["ema"]
    size = 64 if any(key.startswith("encoder.down_blocks.3.") for key in state) else 32
    vae = cast("AutoencoderKL", averaged(VaeTask(size), runs / "vae"))
    vae = whiten(vae, images_tensor("train", size))
    if (runs / "vae-decoder" / "checkpoint.pt").is_file():
        vae.load_state_dict(load_checkpoint(runs / "vae-decoder")["ema"])
    return vae.to(device)


def make_task(model: str, runs: Path, size: int, device: str, copies: int, cifar: Path) -> Task:
    """Returns the training task of a model."""
    if model == "vae":
        return VaeTask(size, device)
    if model == "cifar10-uncond":
        return CifarTask(cifar, device)
    if model == "cifar10-uncond-large":
        return LargeCifarTask(cifar, device)
    vae = load_vae(runs, device)
    if model == "vae-decoder":
        return DecoderTask(vae, device)
    if model == "emoji-t2i":
        return TextToImageTask(vae, runs / model / "tokenizer", device, copies)
    if model == "emoji-dit":
        return DitTask(vae, device, copies)
    raise ValueError(f"unknown model {model!r}: use one of {', '.join(MODELS)}")


def export(model: str, runs: Path, out: Path, cifar: Path) -> Path:
    """Writes the pipeline folder of a trained model, with manifest and card."""
    from quantarena.bench.training import export as exporter

    torch.manual_seed(0)
    return exporter.export(model, runs, out, cifar)
