"""Whether a trained model copies its training images: distances to seen and unseen ones."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

__all__ = ["memorisation"]


def _nearest(samples: Tensor, pool: Tensor) -> Tensor:
    """Returns every sample's smallest RMS pixel distance to a pool, on the 0-255 scale."""
    distances = torch.cdist(samples.flatten(1).float(), pool.flatten(1).float()).amin(1)
    return cast("Tensor", distances / samples[0].numel() ** 0.5)


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """Compares the distances of samples to training images and to held-out images.

    Args:
        samples: uint8 samples.
        train: uint8 train images; a seeded part as large as the held-out set is used too.
        held_out: uint8 held-out images.

    Returns:
        Medians of the nearest-neighbour RMS distance (0-255), and the held-out images' own distance
        to the train set as the yardstick: a sample far below it is a copy.
    """
    picks = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    same_size = train[picks[: len(held_out)]]
    to_train, to_held = _nearest(samples, train), _nearest(samples, held_out)
    yardstick = _nearest(held_out, train)
    return {
        "samples_to_train": float(to_train.median()),
        "samples_to_train_same_size": float(_nearest(samples, same_size).median()),
        "samples_to_heldout": float(to_held.median()),
        "heldout_to_train": float(yardstick.median()),
        "share_of_near_copies": float((to_train < 0.5 * yardstick.median()).float().mean()),
    }
