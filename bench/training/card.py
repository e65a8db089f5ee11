"""The text of a model card, and the numbers that stand in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantarena.bench.training import report

__all__ = ["card", "common_numbers", "parts", "t2i_numbers", "vae_numbers"]

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


def _denoiser(pipeline: Any) -> Any:
    return pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet


@torch.no_grad()
def step_milliseconds(pipeline: Any, batch: int = 16, rounds: int = 5) -> float:
    """Returns the denoiser's median CPU time per image and step, one thread."""
    net = _denoiser(pipeline)
    side = int(net.config.sample_size)
    noisy = torch.randn(batch, int(net.config.in_channels), side, side)
    arguments: dict[str, Any] = {"timestep": torch.full((batch,), 500)}
    if hasattr(pipeline, "text_encoder"):
        width = int(pipeline.text_encoder.config.hidden_size)
        tokens = int(pipeline.tokenizer.model_max_length)
        arguments["encoder_hidden_states"] = torch.randn(batch, tokens, width)
    elif hasattr(pipeline, "transformer"):
        arguments["class_labels"] = torch.zeros(batch, dtype=torch.long)
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for _ in range(rounds + 1):
        begin = time.thread_time()
        net(noisy, **arguments)
        times.append(time.thread_time() - begin)
    torch.set_num_threads(threads)
    return 1000.0 * sorted(times[1:])[rounds // 2] / batch


def common_numbers(
    pipeline: Any, samples: Tensor, train: Tensor, held_out: Tensor
) -> dict[str, str]:
    """Returns size, speed and memorisation of a pipeline as card rows."""
    nets = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    total = sum(p.numel() for net in nets for p in net.parameters())
    own = sum(p.numel() for p in _denoiser(pipeline).parameters())
    near = report.memorisation(samples, train, held_out)
    return {
        "parameters, millions": f"{total / 1e6:.2f}, of which denoiser {own / 1e6:.2f}",
        "denoiser, ms an image and step (batch 16, 1 CPU thread)": (
            f"{step_milliseconds(pipeline):.1f}"
        ),
        "nearest train image of a sample, RMS of 255, median": f"{near['samples_to_train']:.1f}",
        "the same against as many train images as are held out": (
            f"{near['samples_to_train_same_size']:.1f}"
        ),
        "nearest held-out image of a sample": f"{near['samples_to_heldout']:.1f}",
        "nearest train image of a held-out image": f"{near['heldout_to_train']:.1f}",
        "samples nearer to a train image than half of that": (
            f"{100 * near['share_of_near_copies']:.0f} %"
        ),
    }


def vae_numbers(pipeline: Any, held_out: Tensor) -> dict[str, str]:
    """Returns the autoencoder's quality as a card row."""
    psnr = report.held_out_psnr(pipeline.vae, held_out)
    return {"autoencoder PSNR on held-out drawings, dB": f"{psnr:.1f}"}


def t2i_numbers(pipeline: Any, held_out: Tensor, prompts: list[str]) -> dict[str, str]:
    """Returns the autoencoder's quality and the start token's share of cross-attention."""
    rows = vae_numbers(pipeline, held_out)
    shares = report.start_token_share(pipeline, prompts, steps=10)
    average = sum(shares.values()) / len(shares)
    tokens = int(pipeline.tokenizer.model_max_length)
    rows[f"cross-attention on the start token, mean of layers (1 / tokens = {1 / tokens:.3f})"] = (
        f"{average:.3f}"
    )
    for layer, share in shares.items():
        rows[f"- `{layer}`"] = f"{share:.3f}"
    return rows


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
