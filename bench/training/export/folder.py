"""Writes a trained model as a pipeline folder: weights, settings, manifest and model card."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from quantarena.bench.report.phenomena import write_section
from quantarena.bench.training.export import card
from quantarena.bench.training.export.numbers import common_numbers
from quantarena.bench.training.export.pipelines import PIPELINES
from quantarena.bench.training.export.samples import side_by_side
from quantarena.bench.training.tasks.checkpoints import load_checkpoint

__all__ = ["export_model", "write_manifest"]

_UNLISTED = {"manifest.json", "README.md", "samples.png"}


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


def _load_as_fp32(folder: Path) -> None:
    """Makes transformers load the fp16 text encoder in fp32, as diffusers does with its parts."""
    path = folder / "text_encoder" / "config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def export_model(model: str, runs: Path, out: Path, cifar: Path) -> Path:
    """Writes the pipeline folder of a trained model.

    A `note.md` in the run's folder, which says how the samples look to the eye, goes into the card.

    Args:
        model: Name in the zoo.
        runs: Folder of the training runs.
        out: Parent of the pipeline folder, which is replaced.
        cifar: CIFAR-10, for the cards of the models trained on it.

    Raises:
        ValueError: The model is no pipeline of its own.
        FileNotFoundError: It has not been trained.
    """
    if model not in PIPELINES:
        raise ValueError(f"{model} is no pipeline: export one of {', '.join(PIPELINES)}")
    torch.manual_seed(0)  # the card is the same each time, but for its timings
    exported = PIPELINES[model](runs, cifar)
    partial, folder = out / f".{model}.partial", out / model
    shutil.rmtree(partial, ignore_errors=True)
    exported.pipeline.to(torch.float16).save_pretrained(partial)
    _load_as_fp32(partial)
    for name, text in exported.files.items():
        (partial / name).write_text(text, encoding="utf-8")
    settings = json.dumps(exported.settings, indent=1)
    (partial / "workload.json").write_text(settings + "\n", encoding="utf-8")
    pipeline = DiffusionPipeline.from_pretrained(partial, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    samples = exported.samples(pipeline)
    side_by_side(samples, exported.beside).save(partial / "samples.png", optimize=True)
    numbers = common_numbers(pipeline, samples, exported.train, exported.held_out)
    numbers |= exported.numbers(pipeline)
    progress = {name: load_checkpoint(runs / name)["progress"] for name in card.parts(model, runs)}
    note = runs / model / "note.md"
    judged = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    text = card.card(model, exported.settings, numbers, progress, judged)
    (partial / "README.md").write_text(text, encoding="utf-8")
    write_manifest(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    with tempfile.TemporaryDirectory() as cache:
        write_section(folder, Path(cache))
    return folder
