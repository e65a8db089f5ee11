"""The trained models as diffusers pipelines, with the settings they are sampled with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDIMPipeline, DiTPipeline, StableDiffusionPipeline
from torch import Tensor

from quantarena.bench.training.export.numbers import t2i_numbers, vae_numbers
from quantarena.bench.training.export.samples import SAMPLE_SEED, SAMPLES, draw
from quantarena.bench.training.tasks import noise
from quantarena.bench.training.tasks.cifar import CifarTask, LargeCifarTask, cifar_images
from quantarena.bench.training.tasks.dit import DitTask, class_names
from quantarena.bench.training.tasks.images import images_tensor
from quantarena.bench.training.tasks.loop import averaged
from quantarena.bench.training.tasks.t2i import TextToImage, TextToImageTask
from quantarena.bench.training.tasks.vae import load_vae
from quantarena.bench.workloads import emoji64

__all__ = ["PIPELINES", "Exported", "evaluation_prompts"]

PROMPTS = 1024


@dataclass
class Exported:
    """A trained model as a pipeline, with what its folder and its card need.

    Attributes:
        pipeline: The diffusers pipeline with averaged weights.
        settings: Content of `workload.json`.
        samples: Draws sample images with the pipeline read back from disk.
        beside: Real images that the card shows beside the samples.
        train: Training images, for the distance of samples to them.
        held_out: Held-out images, for the same.
        files: Further text files of the folder, by name.
        numbers: Further rows of the card's table.
    """

    pipeline: Any
    settings: dict[str, Any]
    samples: Callable[[Any], Tensor]
    beside: Tensor
    train: Tensor
    held_out: Tensor
    files: dict[str, str] = field(default_factory=dict)
    numbers: Callable[[Any], dict[str, str]] = lambda pipeline: {}


def evaluation_prompts() -> list[str]:
    """Returns the captions that evaluation images are drawn from, in seeded order."""
    captions = [row.caption for row in emoji64.records()]
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(captions))
    return [captions[index] for index in order[:PROMPTS]]


def _pixels(split: str, size: int) -> Tensor:
    pixels = emoji64.load_images(emoji64.records(split), size)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _real_for(rows: list[emoji64.EmojiRecord], size: int) -> Tensor:
    return torch.from_numpy(emoji64.load_images(rows, size)).permute(0, 3, 1, 2)


def _emoji_settings(name: str, title: str, pipeline: str, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "pipeline_class": pipeline,
        "steps": 20,
        "guidance": 3.0,
        "eta": 0.0,
        "resolution": size,
        "reference": "emoji64/heldout",
        "licence": "weights Apache-2.0; data Apache-2.0 (Noto) and MIT (Fluent)",
    }


def _t2i(runs: Path, _: Path) -> Exported:
    vae = load_vae(runs)
    size = int(vae.config.sample_size)
    task = TextToImageTask(vae, runs / TextToImageTask.name / "tokenizer", copies=0)
    net = cast("TextToImage", averaged(task, runs / task.name))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=net.text,
        tokenizer=task.tokenizer,
        unet=net.unet,
        scheduler=noise.scheduler(latent=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    settings = _emoji_settings(
        task.name, f"Emoji from text, {size} px", "StableDiffusionPipeline", size
    )
    settings["conditions"] = {"kind": "prompt", "file": "prompts.txt"}
    prompts = evaluation_prompts()
    by_caption = {row.caption: row for row in emoji64.records()}
    return Exported(
        pipeline,
        settings,
        lambda pipe: draw(pipe, settings, prompts[:SAMPLES]),
        _real_for([by_caption[prompt] for prompt in prompts[:64]], size),
        _pixels("train", size),
        _pixels("heldout", size),
        {"prompts.txt": "\n".join(prompts) + "\n"},
        lambda pipe: t2i_numbers(pipe, images_tensor("heldout", size), prompts[:16]),
    )


def _dit(runs: Path, _: Path) -> Exported:
    vae = load_vae(runs)
    size = int(vae.config.sample_size)
    task = DitTask(vae, copies=0)
    names = class_names()
    labels = dict(enumerate(names))
    net = averaged(task, runs / task.name)
    pipeline = DiTPipeline(
        transformer=net, vae=vae, scheduler=noise.scheduler(latent=True), id2label=labels
    )
    pipeline.register_to_config(id2label=labels)
    settings = _emoji_settings(task.name, f"Emoji by class, {size} px", "DiTPipeline", size)
    rows = emoji64.records()
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(rows))
    conditions = [names.index(rows[index].subcategory) for index in order[:PROMPTS]]
    settings["conditions"] = {"kind": "class", "file": "class_ids.txt", "names": "classes.txt"}
    return Exported(
        pipeline,
        settings,
        lambda pipe: draw(pipe, settings, conditions[:SAMPLES]),
        _real_for([rows[index] for index in order[:64]], size),
        _pixels("train", size),
        _pixels("heldout", size),
        {
            "classes.txt": "\n".join(names) + "\n",
            "class_ids.txt": "\n".join(map(str, conditions)) + "\n",
        },
        lambda pipe: vae_numbers(pipe, images_tensor("heldout", size)),
    )


def _cifar(
    runs: Path, source: Path, make_task: Callable[[Path], CifarTask] = CifarTask
) -> Exported:
    task = make_task(source)
    pipeline = DDIMPipeline(averaged(task, runs / task.name), noise.scheduler(latent=False))
    settings = {
        "name": task.name,
        "title": task.title,
        "pipeline_class": "DDIMPipeline",
        "steps": 20,
        "guidance": 1.0,
        "eta": 0.0,
        "resolution": 32,
        "conditions": {"kind": "none"},
        "reference": "../../data/cifar10/cifar10-test-effnet-lite0.safetensors",
        "licence": "weights Apache-2.0; the authors of CIFAR-10 state no licence for the images",
    }
    held_out = cifar_images(source, train=False)
    picks = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    return Exported(
        pipeline,
        settings,
        lambda pipe: draw(pipe, settings, None),
        held_out[picks[:64]],
        task.images,
        held_out,
    )


def _large_cifar(runs: Path, source: Path) -> Exported:
    return _cifar(runs, source, LargeCifarTask)


PIPELINES: dict[str, Callable[[Path, Path], Exported]] = {
    "emoji-t2i": _t2i,
    "emoji-dit": _dit,
    "cifar10-uncond": _cifar,
    "cifar10-uncond-large": _large_cifar,
}
