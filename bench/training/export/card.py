"""The text of a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["card", "parts"]

_DATA = {
    "emoji": (
        "`emoji64` of this package (its train split, reduced to the model's resolution): emoji of "
        "six picture categories in two drawings, Noto (Apache-2.0) and Fluent 3D (MIT), on white. "
        "About 300 drawings were held out before training; of an emoji never both drawings."
    ),
    "cifar": (
        "The 50,000 train images of CIFAR-10 (Krizhevsky 2009; its authors state no licence), from "
        "a slightly lossy JPEG copy, with horizontal flips. No image is part of this package."
    ),
}
_ABOUT = {
    "emoji-t2i": (
        "Text to image in the Stable Diffusion layout: byte-pair CLIP tokenizer with 16 tokens, a "
        "CLIP text encoder of two layers trained with the U-Net, an autoencoder to 8x8x4 latents, "
        "a cross-attention U-Net, epsilon prediction, classifier-free guidance (a tenth of the "
        "captions left out). A caption is `a NAME, flat` (Noto) or `a NAME, 3d` (Fluent): the "
        "style word keeps one caption from standing for two different pictures."
    ),
    "emoji-dit": (
        "A class-conditional diffusion transformer (adaLN-zero, 6 blocks of width 192, patch 2) on "
        "8x8x4 latents. A class is an emoji subcategory: `classes.txt` has their names, the line "
        "number minus one is the id. The stock DiTPipeline writes `no class` as 1000, so the class "
        "tables have 1,001 rows; the first ones and the last are trained. `class_ids.txt` is the "
        "evaluation list."
    ),
    "cifar10-uncond": (
        "An unconditional pixel U-Net with DDPM's linear betas and epsilon prediction, sampled "
        "with DDIM."
    ),
    "cifar10-uncond-large": (
        "An unconditional pixel U-Net, 64 to 192 channels wide, with DDPM's linear betas and "
        "epsilon prediction, sampled with DDIM."
    ),
}


def parts(model: str, runs: Path) -> list[str]:
    """Returns the training runs that a model is made of."""
    if model.startswith("cifar10"):
        return [model]
    decoder = ["vae-decoder"] if (runs / "vae-decoder" / "checkpoint.pt").is_file() else []
    return ["vae", *decoder, model]


def _training(progress: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| part | steps | minutes | on | last loss |", "| --- | --- | --- | --- | --- |"]
    for name, done in progress.items():
        loss = f"{done['losses'][-1][1]:.4f}" if done["losses"] else "-"
        minutes = done["seconds"] / 60
        device = done.get("device", "CPU")
        lines.append(f"| {name} | {done['step']:,} | {minutes:.0f} | {device} | {loss} |")
    return "\n".join(lines)


def card(
    model: str,
    settings: Mapping[str, Any],
    numbers: Mapping[str, str],
    progress: Mapping[str, Mapping[str, Any]],
    judged: str = "",
) -> str:
    """Returns the card's Markdown text."""
    data = _DATA["cifar" if model.startswith("cifar") else "emoji"]
    rows = "\n".join(f"| {name} | {value} |" for name, value in numbers.items())
    conditional = settings["conditions"]["kind"] != "none"
    same = "\nof the same captions or classes" if conditional else ""
    return f"""# {model}

{settings["title"]}. {_ABOUT[model]}

![64 samples beside 64 real images](samples.png)

Left: 64 samples, seeded, with the settings of `workload.json` ({settings["steps"]} DDIM steps,
guidance {settings["guidance"]:g}, eta {settings["eta"]:g}). Right: real images{same}.
{chr(10) + judged + chr(10) if judged else ""}
## Training
{data}

{_training(progress)}

Seed 0 everywhere; AdamW, cosine schedule, averaged weights (EMA), min-SNR weights (gamma 5).
`python -m quantarena.bench.training {model} --resume --minutes M --out RUNS` goes on,
`--export` writes this folder again.

## Numbers
| what | value |
| --- | --- |
{rows}

The weights are stored in fp16. This is a small model for comparing quantization methods: results
on it show relative harm and do not carry over to large models' image quality.

Licence: {settings["licence"]}.
"""
