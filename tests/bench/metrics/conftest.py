"""Real photographs cut to 64 px, and no network: every metric must work without one."""

import socket

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.extractor import extract


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def crops(picture: np.ndarray, count: int, seed: int, side: int = 64) -> Tensor:
    """Random crops of twice the side, every second pixel: uint8 (count, 3, side, side)."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        y = rng.integers(0, picture.shape[0] - 2 * side)
        x = rng.integers(0, picture.shape[1] - 2 * side)
        out.append(picture[y : y + 2 * side : 2, x : x + 2 * side : 2])
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """80 crops of two photographs."""
    return torch.cat([crops(data.coffee(), 40, 0), crops(data.chelsea(), 40, 1)])


@pytest.fixture(scope="session")
def real() -> Tensor:
    """96 other crops of the same photographs."""
    return torch.cat([crops(data.coffee(), 48, 2), crops(data.chelsea(), 48, 3)])


@pytest.fixture(scope="session")
def noisy():
    """Gaussian noise of so many levels, on the 8-bit grid."""

    def noisy(images: Tensor, levels: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(images.shape, generator=generator) * levels
        return (images + noise).round().clamp(0, 255).to(torch.uint8)

    return noisy


@pytest.fixture(scope="session")
def blurred():
    """A box blur of so many pixels."""

    def blurred(images: Tensor, width: int) -> Tensor:
        pad = width // 2
        x = torch.nn.functional.pad(images.float(), (pad,) * 4, mode="replicate")
        return torch.nn.functional.avg_pool2d(x, width, 1).round().to(torch.uint8)

    return blurred


@pytest.fixture(scope="session")
def posterised():
    """So many bits a channel."""

    def posterised(images: Tensor, bits: int) -> Tensor:
        step = 255 / (2**bits - 1)
        return ((images / step).round() * step).round().to(torch.uint8)

    return posterised


@pytest.fixture(scope="session")
def real_features(real) -> Tensor:
    """EfficientNet-lite0 features of the other crops."""
    return extract(real, effnet_lite0())


@pytest.fixture(scope="session")
def damaged_features(photos, noisy, blurred, posterised) -> dict[str, list[Tensor]]:
    """Features of 20 crops: as they are, then ever more damaged, in three ways."""
    few, network = photos[::4], effnet_lite0()
    clean = extract(few, network)
    ways = ((noisy, (4, 10, 25)), (blurred, (3, 5)), (posterised, (3, 2)))
    return {
        way.__name__: [clean] + [extract(way(few, s), network) for s in strengths]
        for (way, strengths) in ways
    }
