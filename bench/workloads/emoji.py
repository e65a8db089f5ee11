"""The emoji64 set as real reference images."""

import torch
from torch import Tensor

from quantarena.bench.training.emoji_data import load_images, records


def heldout_images(resolution: int) -> Tensor:
    """Held-out drawings, which no model of the zoo was trained on.

    Args:
        resolution: pixels a side, at most 64.

    Returns:
        uint8, (N, 3, resolution, resolution).
    """
    array = load_images(records("heldout"), resolution)
    images = torch.from_numpy(array)
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()
