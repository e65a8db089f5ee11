"""LPIPS with AlexNet, version 0.1: distance of deep features, fitted to human judgement.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018.
The weights are those of the ``lpips`` package; ``metrics.derive.lpips`` made the committed file.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from quantarena.bench.metrics.images import check_pairs, chunks, to_unit
from quantarena.bench.metrics.weights import ASSETS, REMEDY, stated_sha256, verified

WEIGHTS = "lpips-alex-v0.1.safetensors"
MIN_SIDE = 64

# (out, in, kernel, stride, padding) of AlexNet's convolutions; which have a pool before them.
_LAYERS = (
    (64, 3, 11, 4, 2),
    (192, 64, 5, 1, 2),
    (384, 192, 3, 1, 1),
    (256, 384, 3, 1, 1),
    (256, 256, 3, 1, 1),
)
_POOL_BEFORE = (1, 2)
_PARTS = ("weight", "bias")


class LpipsAlex(nn.Module):
    """The LPIPS network; ``forward`` takes float images in [0, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel, stride, padding)
            for outer, inner, kernel, stride, padding in _LAYERS
        )
        self.heads = nn.ParameterList(
            nn.Parameter(torch.zeros(outer), requires_grad=False) for outer, *_ in _LAYERS
        )
        # ImageNet's mean and deviation, for images in [-1, 1], rounded as the authors did.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def features(self, images: Tensor) -> list[Tensor]:
        """Five feature maps of unit length along the channels, for images in [0, 1]."""
        x = (2 * images - 1 - self.shift) / self.scale
        maps = []
        for index, conv in enumerate(self.convs):
            if index in _POOL_BEFORE:
                x = functional.max_pool2d(x, 3, 2)
            x = functional.relu(conv(x))
            maps.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return maps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The distance of each pair, (N,), of two sets of float images (N, 3, H, W) in [0, 1]."""
        total = torch.zeros(first.shape[0], device=first.device)
        # One pass over both sets: the same kernels run on both, so equal images have distance 0.
        for head, maps in zip(self.heads, self.features(torch.cat([first, second])), strict=True):
            a, b = maps.chunk(2)
            total += torch.einsum("nchw,c->nhw", (a - b).pow(2), head).mean((1, 2))
        return total


def read_weights(folder: Path = ASSETS) -> dict[str, Tensor]:
    """Read the committed weights, checked against their manifest.

    Returns:
        ``conv{1..5}.weight`` (O, I, H, W), ``conv{1..5}.bias`` (O,), ``head{1..5}`` (C,); fp32.

    Raises:
        BrokenWeights: the file or the manifest is missing, truncated or changed.
    """
    path = verified(folder / WEIGHTS, weights_sha256(folder), REMEDY)
    tensors: dict[str, Tensor] = load(path.read_bytes())
    return tensors


def weights_sha256(folder: Path = ASSETS) -> str:
    """The sha256 of the weights by their manifest. Raises BrokenWeights if it cannot be read."""
    return stated_sha256(WEIGHTS, folder)


@lru_cache(maxsize=2)
def lpips_alex(device: str = "cpu") -> LpipsAlex:
    """The network with its weights, in evaluation mode. Raises BrokenWeights."""
    tensors = read_weights()
    net = LpipsAlex()
    names = {f"convs.{i}.{part}": f"conv{i + 1}.{part}" for i in range(5) for part in _PARTS}
    names |= {f"heads.{i}": f"head{i + 1}" for i in range(5)}
    state = {ours: tensors[theirs] for ours, theirs in names.items()}
    net.load_state_dict(state | {"shift": net.shift, "scale": net.scale})
    net = net.to(device).to(memory_format=torch.channels_last)
    return net.eval().requires_grad_(False)


def enlarge(images: Tensor, side: int = MIN_SIDE) -> Tensor:
    """Enlarge images (bilinear) whose shorter side is below ``side``; return others as they are.

    AlexNet's first layers shrink 32 px to a 1x1 map, which has no structure to compare.
    """
    short = min(images.shape[2:])
    if short >= side:
        return images
    size = [round(length * side / short) for length in images.shape[2:]]
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def lpips(
    fp: Tensor,
    test: Tensor,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The LPIPS distance of each pair; 0 for equal images, lower is better.

    Images with a side under 64 px are first enlarged to 64 px (bilinear).

    Args:
        fp: full-precision images, uint8 (N, 3, H, W).
        test: images of the same seeds, the same shape.
        device: where the network runs.
        progress: called with the number of pairs done.

    Returns:
        (N,) float64.

    Raises:
        BadImages: the images are not pairs of uint8 images.
        BrokenWeights: the committed weights are damaged.
    """
    check_pairs(fp, test)
    net = lpips_alex(device)
    out = np.empty(fp.shape[0])
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        for part in chunks(fp, 1 << 16):
            pair = (enlarge(to_unit(images[part], device)) for images in (fp, test))
            first, second = (x.contiguous(memory_format=torch.channels_last) for x in pair)
            out[part] = net(first, second).double().cpu().numpy()
            if progress:
                progress(min(part.stop, fp.shape[0]))
    return out
