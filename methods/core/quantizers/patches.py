"""A 2-d convolution as a matrix product: one row for each output pixel, holding what it reads.

A range for each row can then be scaled back behind the sum, where ranges of input pixels could not:
a kernel mixes neighbouring pixels in one sum. So DGQ's pixel groups (arXiv:2501.04304) are groups
of these rows. The price is that an input pixel is quantized once for each output that reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Window:
    """The input pixels that an output pixel of a convolution reads; pairs are (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> "Window":
        """From sequences of two integers, such as JSON gives."""
        pairs = [(int(v[0]), int(v[1])) for v in (kernel, stride, padding, dilation)]
        return cls(*pairs)

    def size(self, image: Tensor) -> tuple[int, int]:
        """Height and width of the output for an image (..., H, W)."""
        height, width = (
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, pad, dilation in zip(
                image.shape[-2:], self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return height, width

    def rows(self, x: Tensor) -> Tensor:
        """Patches (B, pixels, h * w * C) of an image (B, C, H, W); channels run fastest."""
        patches = self._padded(x).permute(0, 2, 3, 1)
        for axis in (0, 1):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            patches = patches.unfold(1 + axis, reach, self.stride[axis])
            patches = patches[..., :: self.dilation[axis]]
        # (B, out height, out width, C, h, w)
        batch, height, width, channels, *_ = patches.shape
        taps = self.kernel[0] * self.kernel[1]
        return patches.permute(0, 1, 2, 4, 5, 3).reshape(batch, height * width, taps * channels)

    def image(self, rows: Tensor, x: Tensor) -> Tensor:
        """Output pixels (B, pixels, O) as the image (B, O, H', W') that ``x`` leads to."""
        height, width = self.size(x)
        return rows.reshape(len(rows), height, width, -1).permute(0, 3, 1, 2)

    def bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of every patch, (pixels,), from those of input pixels over channels, (H, W)."""
        low, high = (self._padded(v[None, None]) for v in (-low, high))
        pooled = [F.max_pool2d(v, self.kernel, self.stride, 0, self.dilation) for v in (low, high)]
        return -pooled[0].flatten(), pooled[1].flatten()

    def _padded(self, x: Tensor) -> Tensor:
        vertical, across = self.padding
        return F.pad(x, (across, across, vertical, vertical)) if vertical or across else x


def weight_rows(weight: Tensor) -> Tensor:
    """A weight (O, C, h, w) as the (O, h * w * C) that meets ``Window.rows``."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def tap_rows(per_channel: Tensor, window: Window) -> Tensor:
    """Values by input channel, (C,), as (h * w * C,)."""
    return torch.cat([per_channel] * (window.kernel[0] * window.kernel[1]))
