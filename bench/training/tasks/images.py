"""Training images of the emoji data set, and their random distortion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quantarena.bench.workloads import emoji64


def images_tensor(split: str | None, size: int, device: str = "cpu") -> Tensor:
    """Returns the emoji of a split as a tensor in [-1, 1], shape (N, 3, size, size)."""
    pixels = emoji64.load_images(emoji64.records(split), size)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return (images.to(device).float() / 127.5) - 1.0


def jitter(images: Tensor, scale: float = 0.1, shift: float = 0.08) -> Tensor:
    """Flips, scales and shifts every image at random over its white ground."""
    count, device = images.shape[0], images.device
    zoom = 1.0 + scale * (2.0 * torch.rand(count, device=device) - 1.0)
    flip = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    move = shift * (2.0 * torch.rand(count, 2, device=device) - 1.0)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * flip, zoom, move
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    dark = F.grid_sample(1.0 - images, grid, mode="bilinear", align_corners=False)
    return 1.0 - dark
