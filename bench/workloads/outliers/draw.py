"""The distribution of planted factors: which channels of a site are outliers, and how large.

All factors are powers of two: a product with one changes no digit of a float, so the network in
full precision computes the same numbers. With strength s and u uniform in [1, 5/3]:

- one of 32 channels, at least one, is an outlier of the activations: factor ``2^round(s u)``. At
  strength 4 these are 16 to 128, as in the largest channels of Stable Diffusion; at 1, 2 or 4.
- as many other channels are outliers of the weights: the activations are divided by, and the
  weights that read them multiplied with, ``2^round(s u / 2)``. Not in streams, whose norms would
  feel their epsilon where values become small.
- the deep half of a concatenation is multiplied with ``2^round(3 s / 4)`` as a whole.

The generator is seeded by the site's name alone. So the same channels are outliers at all
strengths, on all machines and for all seeds of a run.
"""

import hashlib
import math

import torch

from quantarena.bench.workloads.outliers.sites import Site, SiteKind

RARITY = 32
"""Channels of a site for each outlier."""
LEAST = 8
"""Fewer classes than this have no outlier among them."""
LEAST_STRENGTH, MOST_STRENGTH = 0.5, 8.0
"""From the first on every outlier of the activations is at least 2; below it, some are 1."""


def octaves(site: Site, strength: float) -> dict[int, int]:
    """Logarithms to base 2 of the factors of a site's classes, without those that are 0."""
    if site.kind is SiteKind.HALF:
        return _without_zeros(dict.fromkeys(site.classes, _rounded(0.75 * strength)))
    if len(site.classes) < LEAST:
        return {}
    seed = int.from_bytes(hashlib.sha256(site.name.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(site.classes), generator=generator).tolist()
    sizes = (1 + torch.rand(len(order), generator=generator, dtype=torch.float64) * 2 / 3).tolist()
    count = max(1, len(order) // RARITY)
    down = 0 if site.kind is SiteKind.STREAM else count
    drawn = {site.classes[k]: _rounded(strength * sizes[k]) for k in order[:count]}
    for k in order[count : count + down]:
        drawn[site.classes[k]] = -_rounded(strength * sizes[k] / 2)
    return _without_zeros(drawn)


def _rounded(value: float) -> int:
    """The nearest whole number; halves go up."""
    return math.floor(value + 0.5)


def _without_zeros(drawn: dict[int, int]) -> dict[int, int]:
    return {found: octave for found, octave in drawn.items() if octave}
