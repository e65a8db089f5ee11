"""Writes a trained model as a diffusers pipeline folder: weights, manifest, settings and card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDIMPipeline, DiffusionPipeline, DiTPipeline, StableDiffusionPipeline
from torch import Tensor

from quantarena.bench.training import card, noise, report, zoo
from quantarena.bench.training.cifar import CifarTask, LargeCifarTask, cifar_images
from quantarena.bench.training.dit import DitTask, class_names
from quantarena.bench.training.loop import averaged, load_checkpoint
from quantarena.bench.training.t2i import TextToImage, TextToImageTask
from quantarena.bench.training.vae import images_tensor
from quantarena.bench.workloads import emoji64

__all__ = ["evaluation_prompts", "export", "write_manifest"]

PROMPTS = 1024
SAMPLES = 64
SAMPLE_SEED = 1234
_UNLISTED = {"manifest.json", "README.md", "samples.png"}


@dataclass
class Exported:
    """What a model's exporter hands to the shared part."""

    pipeline: Any
    settings: dict[str, Any]
    samples: Callable[[Any], Tensor]
    beside: Tensor
    train: Tensor
    held_out: Tensor
    files: dict[str, str] = field(default_factory=dict)
    numbers: Callable[[Any], dict[str, str]] = lambda pipeline: {}


def evaluation_prompts() -> list[str]:
    """Returns the captions that the model is judged on, in seeded order."""
    captions = [row.caption for row in emoji64.records()]
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(captions))
    return [captions[index] for index in order[:PROMPTS]]


def write_manifest(folder: Path) -> None:
    """Writes the sha256 and size of every file that the pipeline reads."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in _UNLISTED:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            files[name] = {"sha256": digest, "bytes": path.stat().st_size}
    text = json.dumps({"files": files}, indent=1)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def generators(count: int) -> list[torch.Generator]:
    """Returns one seeded CPU generator an image."""
    return [torch.Generator().manual_seed(SAMPLE_SEED + index) for index in range(count)]


def to_tensor(images: Any) -> Tensor:
    """Brings a pipeline's float images (N, H, W, 3) to uint8 (N, 3, H, W)."""
    pixels = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)
    return (pixels.clamp(0, 1) * 255.0).round().to(torch.uint8)


def _draw(pipeline: Any, settings: dict[str, Any], conditions: list[Any] | None) -> Tensor:
    """Draws SAMPLES images with the recommended settings, 32 at a time."""
    seeds, parts = generators(SAMPLES), []
    for start in range(0, SAMPLES, 32):
        stop = start + 32
        arguments: dict[str, Any] = {
            "generator": seeds[start:stop],
            "num_inference_steps": settings["steps"],
            "output_type": "np",
        }
        if conditions is None:
            arguments["batch_size"] = 32
        elif isinstance(conditions[0], str):
            arguments["prompt"] = conditions[start:stop]
            arguments["guidance_scale"] = settings["guidance"]
        else:
            arguments["class_labels"] = conditions[start:stop]
            arguments["guidance_scale"] = settings["guidance"]
        parts.append(to_tensor(pipeline(**arguments).images))
    return torch.cat(parts)


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
    vae = zoo.load_vae(runs)
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
        lambda pipe: _draw(pipe, settings, prompts[:SAMPLES]),
        _real_for([by_caption[prompt] for prompt in prompts[:64]], size),
        _pixels("train", size),
        _pixels("heldout", size),
        {"prompts.txt": "\n".join(prompts) + "\n"},
        lambda pipe: card.t2i_numbers(pipe, images_tensor("heldout", size), prompts[:16]),
    )


def _dit(runs: Path, _: Path) -> Exported:
    vae = zoo.load_vae(runs)
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
        lambda pipe: _draw(pipe, settings, conditions[:SAMPLES]),
        _real_for([rows[index] for index in order[:64]], size),
        _pixels("train", size),
        _pixels("heldout", size),
        {
            "classes.txt": "\n".join(names) + "\n",
            "class_ids.txt": "\n".join(map(str, conditions)) + "\n",
        },
        lambda pipe: card.vae_numbers(pipe, images_tensor("heldout", size)),
    )


def _cifar(
    runs: Path, source: Path, make_task: Callable[[Path], CifarTask] = CifarTask
) -> Exported:
    task = make_task(source)
    pipeline = DDIMPipeline(averaged(task, runs / task.name), noise.scheduler(latent=False))
    settings = {
        "name": task.name,
        "title": "CIFAR-10, unconditional, 32 px",
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
        lambda pipe: _draw(pipe, settings, None),
        held_out[picks[:64]],
        task.images,
        held_out,
    )


def _large_cifar(runs: Path, source: Path) -> Exported:
    return _cifar(runs, source, LargeCifarTask)


_EXPORTERS: dict[str, Callable[[Path, Path], Exported]] = {
    "emoji-t2i": _t2i,
    "emoji-dit": _dit,
    "cifar10-uncond": _cifar,
    "cifar10-uncond-large": _large_cifar,
}


def _load_as_fp32(folder: Path) -> None:
    """Makes transformers load the fp16 text encoder in fp32, as diffusers does with its parts."""
    path = folder / "text_encoder" / "config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def export(model: str, runs: Path, out: Path, cifar: Path) -> Path:
    """Writes the pipeline folder of a trained model.

    Args:
        model: Name in the zoo.
        runs: Folder of the training runs.
        out: Parent of the pipeline folder, which is replaced.
        cifar: CIFAR-10, for that model's card.

    A `note.md` in the run's folder, how the samples look to the eye, goes into the card.

    Raises:
        ValueError: The model is no pipeline of its own.
        FileNotFoundError: It has not been trained.
    """
    if model not in _EXPORTERS:
        raise ValueError(f"{model} is no pipeline: export one of {', '.join(_EXPORTERS)}")
    made = _EXPORTERS[model](runs, cifar)
    partial, folder = out / f".{model}.partial", out / model
    shutil.rmtree(partial, ignore_errors=True)
    made.pipeline.to(torch.float16).save_pretrained(partial)
    _load_as_fp32(partial)
    for name, text in made.files.items():
        (partial / name).write_text(text, encoding="utf-8")
    settings = json.dumps(made.settings, indent=1)
    (partial / "workload.json").write_text(settings + "\n", encoding="utf-8")
    pipeline = DiffusionPipeline.from_pretrained(partial, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    samples = made.samples(pipeline)
    report.side_by_side(samples, made.beside).save(partial / "samples.png", optimize=True)
    numbers = card.common_numbers(pipeline, samples, made.train, made.held_out)
    numbers |= made.numbers(pipeline)
    progress = {name: load_checkpoint(runs / name)["progress"] for name in card.parts(model, runs)}
    note = runs / model / "note.md"
    judged = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    text = card.card(model, made.settings, numbers, progress, judged)
    (partial / "README.md").write_text(text, encoding="utf-8")
    write_manifest(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder
