"""The models of the zoo by name: their training presets and tasks."""

from __future__ import annotations

from pathlib import Path

from quantarena.bench.training.tasks.cifar import CifarTask, LargeCifarTask
from quantarena.bench.training.tasks.dit import DitTask
from quantarena.bench.training.tasks.loop import LoopConfig, Task
from quantarena.bench.training.tasks.t2i import TextToImageTask
from quantarena.bench.training.tasks.vae import DecoderTask, VaeTask, load_vae

__all__ = ["MODELS", "PRESETS", "make_task", "zoo_dir"]

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
    return Path(__file__).resolve().parents[2] / "workloads" / "zoo"


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
