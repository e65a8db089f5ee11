"""The noise-prediction objective that every diffusion model of the zoo trains with."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from quantarena.bench.training.tasks.images import jitter

__all__ = ["NoiseObjective", "augmented", "scheduler"]

MIN_SNR_GAMMA = 5.0


def scheduler(latent: bool) -> DDIMScheduler:
    """Returns the sampler: Stable Diffusion's betas for latents, DDPM's for pixels."""
    if latent:
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
    return DDIMScheduler(beta_schedule="linear", clip_sample=True, set_alpha_to_one=True)


class NoiseObjective:
    """Epsilon prediction with min-SNR weights and timesteps spread evenly over the batch.

    Args:
        sampler: The scheduler whose noise levels are trained.
        device: torch device of the batches.
    """

    def __init__(self, sampler: DDIMScheduler, device: str = "cpu") -> None:
        alphas = sampler.alphas_cumprod.to(device)
        self.signal, self.noise = alphas.sqrt(), (1.0 - alphas).sqrt()
        snr = alphas / (1.0 - alphas)
        self.weight = snr.clamp(max=MIN_SNR_GAMMA) / snr
        self.weight = self.weight / self.weight.mean()

    def __call__(self, clean: Tensor, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Returns the loss of a batch.

        Args:
            clean: Latents or images without noise.
            predict: Maps (noisy batch, timesteps) to the predicted noise.
        """
        count, device = len(clean), clean.device
        spread = torch.arange(count, device=device) + torch.rand(count, device=device)
        steps = (spread * (len(self.signal) / count)).long().clamp(max=len(self.signal) - 1)
        noise = torch.randn_like(clean)
        shape = (-1, *[1] * (clean.dim() - 1))
        noisy = self.signal[steps].view(shape) * clean + self.noise[steps].view(shape) * noise
        error = (predict(noisy, steps).float() - noise).square().flatten(1).mean(1)
        return cast("Tensor", (self.weight[steps] * error).mean())


def augmented(images: Tensor, encode: Callable[[Tensor], Tensor], copies: int) -> Tensor:
    """Encodes the images and `copies` jittered versions of them, once.

    Returns:
        Tensor of shape (copies + 1, N, ...).
    """
    torch.manual_seed(7)
    return torch.stack(
        [encode(images)] + [encode(jitter(images, 0.06, 0.04)) for _ in range(copies)]
    )
