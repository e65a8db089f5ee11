"""`cifar10-uncond`: a pixel U-Net on the CIFAR-10 train images, and a larger one."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Tensor, nn

from quantarena.bench.training.tasks.noise import NoiseObjective, scheduler

__all__ = ["CifarTask", "LargeCifarTask", "cifar_images"]


def cifar_images(source: Path, train: bool) -> Tensor:
    """Reads CIFAR-10.

    Args:
        source: A zip with `train/<class>/*.jpg` and `test/<class>/*.jpg`, or a torchvision root.
        train: Whether to read the train part.

    Returns:
        uint8 tensor of shape (N, 3, 32, 32).

    Raises:
        FileNotFoundError: There is nothing at the path.
    """
    if not source.exists():
        raise FileNotFoundError(f"no CIFAR-10 at {source}: give a zip or a torchvision folder")
    if source.is_dir():
        from torchvision.datasets import CIFAR10

        pixels = CIFAR10(str(source), train=train).data
    else:
        prefix = "train/" if train else "test/"
        with zipfile.ZipFile(source) as archive:
            names = sorted(n for n in archive.namelist() if n.startswith(prefix) and "." in n)
            pixels = np.stack(
                [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
            )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


class CifarTask:
    """Trains the pixel U-Net.

    Args:
        source: See `cifar_images`.
        device: torch device.
    """

    name = "cifar10-uncond"
    title = "CIFAR-10, unconditional, 32 px"
    channels = (32, 64, 64)
    """Channels by resolution: 32, 16 and 8 px, the last one with attention."""
    head_channels = 16
    norm_groups = 16

    def __init__(self, source: Path, device: str = "cpu") -> None:
        self.images = cifar_images(source, train=True).to(device)
        self.objective = NoiseObjective(scheduler(latent=False), device)

    def build(self) -> nn.Module:
        """Builds the U-Net."""
        return cast(
            "nn.Module",
            UNet2DModel(
                sample_size=32,
                in_channels=3,
                out_channels=3,
                block_out_channels=self.channels,
                layers_per_block=1,
                down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
                attention_head_dim=self.head_channels,
                norm_num_groups=self.norm_groups,
            ),
        )

    def loss(self, net: nn.Module, batch: int) -> Tensor:
        """Returns the noise-prediction loss on randomly flipped images."""
        device = self.images.device
        picks = torch.randint(len(self.images), (batch,), device=device)
        clean = self.images[picks].float() / 127.5 - 1.0
        flip = torch.rand(batch, 1, 1, 1, device=device) < 0.5
        clean = torch.where(flip, clean.flip(3), clean)
        return self.objective(clean, lambda noisy, steps: net(noisy, steps).sample)


class LargeCifarTask(CifarTask):
    """Trains a U-Net of 7.2 million parameters on the same images; see `CifarTask`."""

    name = "cifar10-uncond-large"
    title = "CIFAR-10, unconditional, 32 px, larger U-Net"
    channels = (64, 128, 192)
    head_channels = 64
    norm_groups = 32
