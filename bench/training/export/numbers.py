"""The rows of numbers in a model card: size, speed, memorisation, autoencoder quality."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantarena.bench.training.export.memorisation import memorisation
from quantarena.bench.training.export.start_token import start_token_share


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
    denoiser = sum(p.numel() for p in _denoiser(pipeline).parameters())
    near = memorisation(samples, train, held_out)
    return {
        "parameters, millions": f"{total / 1e6:.2f}, of which denoiser {denoiser / 1e6:.2f}",
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
    psnr = held_out_psnr(pipeline.vae, held_out)
    return {"autoencoder PSNR on held-out drawings, dB": f"{psnr:.1f}"}


def t2i_numbers(pipeline: Any, held_out: Tensor, prompts: list[str]) -> dict[str, str]:
    """Returns the autoencoder's quality and the start token's share of cross-attention."""
    rows = vae_numbers(pipeline, held_out)
    shares = start_token_share(pipeline, prompts, steps=10)
    average = sum(shares.values()) / len(shares)
    tokens = int(pipeline.tokenizer.model_max_length)
    rows[f"cross-attention on the start token, mean of layers (1 / tokens = {1 / tokens:.3f})"] = (
        f"{average:.3f}"
    )
    for layer, share in shares.items():
        rows[f"- `{layer}`"] = f"{share:.3f}"
    return rows


@torch.no_grad()
def held_out_psnr(vae: Any, images: Tensor) -> float:
    """Returns the mean PSNR in dB of the autoencoder on images in [-1, 1]."""
    output = torch.cat(
        [vae.decode(vae.encode(p).latent_dist.mode()).sample for p in torch.split(images, 64)]
    )
    error = F.mse_loss(output.clamp(-1, 1), images, reduction="none").flatten(1).mean(1)
    return float((10.0 * torch.log10(4.0 / error)).mean())
