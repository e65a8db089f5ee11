"""The autoencoder that the latent models share: 32 px (f4) or 64 px (f8) images, 8x8 latents."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from quantarena.bench.training.tasks.checkpoints import load_checkpoint
from quantarena.bench.training.tasks.images import images_tensor, jitter
from quantarena.bench.training.tasks.loop import averaged

__all__ = ["LATENT_SIDE", "DecoderTask", "VaeTask", "encode", "whiten"]

LATENT_SIDE = 8
LATENT_CHANNELS = 4
_WIDTHS = {32: (32, 64, 64), 64: (32, 64, 96, 96)}


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.diff(dim=-1), images.diff(dim=-2)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + MSE, and L1 between the edges at two scales, which keeps outlines sharp."""
    loss = F.l1_loss(output, target) + F.mse_loss(output, target)
    for factor in (1, 2):
        small = [F.avg_pool2d(x, factor) if factor > 1 else x for x in (output, target)]
        pairs = zip(_edges(small[0]), _edges(small[1]), strict=True)
        loss = loss + 0.5 * sum(F.l1_loss(a, b) for a, b in pairs)
    return loss


class VaeTask:
    """Trains the autoencoder on the train split.

    Args:
        size: Image side, 32 or 64.
        device: torch device of the images.
    """

    name = "vae"

    def __init__(self, size: int = 32, device: str = "cpu") -> None:
        if size not in _WIDTHS:
            raise ValueError(f"image size {size} is not one of {sorted(_WIDTHS)}")
        self.size = size
        self.images = images_tensor("train", size, device)

    def build(self) -> nn.Module:
        """Builds the autoencoder."""
        widths = _WIDTHS[self.size]
        return cast(
            "nn.Module",
            AutoencoderKL(
                in_channels=3,
                out_channels=3,
                sample_size=self.size,
                latent_channels=LATENT_CHANNELS,
                block_out_channels=widths,
                down_block_types=("DownEncoderBlock2D",) * len(widths),
                up_block_types=("UpDecoderBlock2D",) * len(widths),
                layers_per_block=1,
                norm_num_groups=16,
                mid_block_add_attention=False,
                scaling_factor=1.0,
            ),
        )

    def loss(self, net: nn.Module, batch: int) -> Tensor:
        """Returns reconstruction plus a small KL term on jittered images."""
        picks = torch.randint(len(self.images), (batch,), device=self.images.device)
        images = jitter(self.images[picks])
        vae = cast("AutoencoderKL", net)
        posterior = vae.encode(images).latent_dist
        output = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(output.float(), images) + 1e-5 * posterior.kl().mean()
        return cast("Tensor", loss)


class DecoderTask:
    """Trains the decoder alone, so that the latents and the models trained on them stay valid.

    Args:
        vae: The trained autoencoder, latents whitened.
        device: torch device.
        copies: Jittered versions of every image beside the original.
    """

    name = "vae-decoder"

    def __init__(self, vae: AutoencoderKL, device: str = "cpu", copies: int = 8) -> None:
        self.vae = vae
        images = images_tensor("train", int(vae.config.sample_size), device)
        torch.manual_seed(11)
        self.images = torch.cat([images, *(jitter(images) for _ in range(copies))])
        self.latents = encode(vae, self.images)

    def build(self) -> nn.Module:
        """Returns a copy of the autoencoder with a frozen encoder."""
        vae = copy.deepcopy(self.vae)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        return cast("nn.Module", vae)

    def loss(self, net: nn.Module, batch: int) -> Tensor:
        """Returns the reconstruction loss from slightly noisy latents."""
        picks = torch.randint(len(self.images), (batch,), device=self.images.device)
        latents = self.latents[picks]
        latents = latents + 0.03 * torch.randn_like(latents)
        output = cast("AutoencoderKL", net).decode(latents).sample
        return reconstruction_loss(output.float(), self.images[picks])


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 64) -> Tensor:
    """Returns the latents' means, scaled as the pipelines expect them."""
    parts = [vae.encode(part).latent_dist.mode() for part in torch.split(images, batch)]
    return torch.cat(parts) * float(vae.config.scaling_factor)


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: Tensor) -> AutoencoderKL:
    """Folds the latents' per-channel mean and deviation into the 1x1 convolutions beside them.

    The images that come out stay the same; the latents have mean 0 and deviation 1 over the given
    images, so that `scaling_factor` is 1 and white ground does not sit far from the noise's mean.
    """
    latents = encode(vae, images)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2.0 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std.view(1, -1, 1, 1)
    return vae


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
