"""Numbers and pictures for the model cards: sample grids, memorisation, start-token attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["grid", "held_out_psnr", "memorisation", "side_by_side", "start_token_share", "to_uint8"]


def to_uint8(images: Tensor) -> Tensor:
    """Brings images in [-1, 1] to the 8-bit grid."""
    return ((images.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)


def grid(images: Tensor, columns: int = 8, zoom: int = 2) -> Image.Image:
    """Lays out uint8 images of shape (N, 3, H, W) in rows."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = (index // columns) * (height + 2), (index % columns) * (width + 2)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def side_by_side(samples: Tensor, real: Tensor) -> Image.Image:
    """Puts 64 samples (left) beside 64 real images (right)."""
    left, right = grid(samples[:64]), grid(real[:64])
    sheet = Image.new("RGB", (left.width + right.width + 24, left.height), "black")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 24, 0))
    return sheet


def _nearest(samples: Tensor, pool: Tensor) -> Tensor:
    """Returns every sample's smallest RMS pixel distance to a pool, on the 0-255 scale."""
    distances = torch.cdist(samples.flatten(1).float(), pool.flatten(1).float()).amin(1)
    return cast("Tensor", distances / samples[0].numel() ** 0.5)


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """Compares how near samples come to seen and to unseen images.

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


@torch.no_grad()
def held_out_psnr(vae: Any, images: Tensor) -> float:
    """Returns the mean PSNR in dB of the autoencoder on images in [-1, 1]."""
    output = torch.cat(
        [vae.decode(vae.encode(p).latent_dist.mode()).sample for p in torch.split(images, 64)]
    )
    error = F.mse_loss(output.clamp(-1, 1), images, reduction="none").flatten(1).mean(1)
    return float((10.0 * torch.log10(4.0 / error)).mean())


class _Recorder:
    """An attention processor that also notes how much weight the first key token gets."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        weights = attn.get_attention_scores(query, key)
        self.shares.append(float(weights[..., 0].mean()))
        output = attn.batch_to_head_dim(torch.bmm(weights, value))
        output = attn.to_out[1](attn.to_out[0](output))
        return output / attn.rescale_output_factor  # type: ignore[no-any-return]


@contextmanager
def _recording(unet: Any) -> Iterator[dict[str, _Recorder]]:
    before = dict(unet.attn_processors)
    recorders = {name: _Recorder() for name in before if ".attn2." in name}
    unet.set_attn_processor({**before, **recorders})
    try:
        yield recorders
    finally:
        unet.set_attn_processor(before)


def start_token_share(pipeline: Any, prompts: list[str], steps: int) -> dict[str, float]:
    """Returns the mean cross-attention weight on the start token, by layer, over a sampling."""
    generator = torch.Generator().manual_seed(0)
    with _recording(pipeline.unet) as recorders:
        pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=generator,
            output_type="latent",
        )
        return {
            name.removesuffix(".processor"): float(np.mean(recorder.shares))
            for name, recorder in recorders.items()
        }
