"""Tells images of a working network from those of a damaged one: constant, equal, or noise."""

import torch
from torch import Tensor

FLAT = 2.0
"""Standard deviation of an image's pixels, of 255, below which it shows nothing."""
EQUAL = 1.0
"""Mean difference of two images' pixels, of 255, below which they are one image."""
SATURATED = 0.98
"""Share of pixels at 0 or 255 above which an image shows nothing."""
NOISE = 0.85
"""Roughness from which on an image counts as noise; independent pixels have 1."""
LATENT_NOISE = 0.93
"""The same for latents, which are rougher than images: about 0.8 in a good network of 8 x 8."""


def roughness(images: Tensor) -> Tensor:
    """How much neighbouring pixels differ, against pixels of the same image at random places.

    ``mean((x_i - x_j)^2) / (2 var(x))`` over neighbours i, j and each channel's own variance: 1
    for independent pixels, well below it for pictures, and 0 for constant images.

    Args:
        images: (N, C, H, W).

    Returns:
        (N,).
    """
    x = images.to(torch.float64)
    pairs = (x.diff(dim=-1), x.diff(dim=-2))
    differences = torch.stack([pair.square().mean((1, 2, 3)) for pair in pairs]).mean(0)
    return differences / (2 * x.var((-2, -1), correction=0).mean(1)).clamp(min=1e-9)


def damage(images: Tensor, latents: Tensor | None = None) -> str | None:
    """What is wrong with the images of a network, in a few words; None if nothing is seen.

    This finds weights that were lost, scaled or overwritten, not a network that draws badly.

    Args:
        images: uint8, (N, 3, H, W).
        latents: what the sampler returned last, (n, ...); a latent network draws smooth images
            of noise, which shows here only.
    """
    x = images.to(torch.float32)
    many = (len(x) + 1) // 2
    ends = ((images == 0) | (images == 255)).float().mean((1, 2, 3))
    if int((x.std((1, 2, 3)) < FLAT).sum()) >= many:
        return "its images are of one colour"
    # A white ground is saturated too; a picture on it is still no noise and not alone.
    if int((ends > SATURATED).sum()) >= many and float(roughness(images).median()) > NOISE / 2:
        return "nearly all pixels of its images are black or white"
    if len(x) > 1 and float((x[1:] - x[:-1]).abs().mean()) < EQUAL:
        return "its images are all the same"
    if float(roughness(images).median()) > NOISE:
        return "its images are noise"
    if latents is not None and latents.dim() == 4 and min(latents.shape[-2:]) >= 4:
        if not bool(latents.isfinite().all()):
            return "its latents are not finite"
        if float(roughness(latents).median()) > LATENT_NOISE:
            return "its latents are noise"
    return None
