"""A call of a layer as one integer matrix product.

A convolution is an implicit product: row ``m`` is an output pixel, K runs over (kernel row,
kernel column, channel), and the codes lie in a zero-padded image with channels innermost.  A
linear layer is an image of one line whose pixels are the rows of the input.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quantarena.methods.core.kernels import oracle

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Problem:
    """Sizes and strides of one call; strides are in elements."""

    batch: int
    size: Pair
    """Height and width of the input, without padding."""
    padding: Pair
    channels: int
    """Input channels of one group."""
    groups: int
    columns: int
    """Output channels of one group."""
    out_size: Pair
    kernel: Pair
    stride: Pair
    dilation: Pair
    in_strides: tuple[int, int, int, int]
    """Strides of the input: batch, channel, line, pixel."""
    out_shape: tuple[int, ...]
    out_strides: tuple[int, ...]
    """Strides of the output tensor, as ``torch.empty_strided`` takes them."""
    out_pitch: tuple[int, int, int]
    """Strides of the output: batch, channel, pixel; lines follow each other."""

    @property
    def padded(self) -> Pair:
        """Height and width of the image of codes."""
        return self.size[0] + 2 * self.padding[0], self.size[1] + 2 * self.padding[1]

    @property
    def pixels(self) -> int:
        """Number of pixels of all images of codes, including padding."""
        return self.batch * self.padded[0] * self.padded[1]

    @property
    def out_pixels(self) -> int:
        """Number of output pixels of one image."""
        return self.out_size[0] * self.out_size[1]

    @property
    def rows(self) -> int:
        """Number of rows of the product."""
        return self.batch * self.out_pixels

    @property
    def depth(self) -> int:
        """Number of products per output."""
        return self.kernel[0] * self.kernel[1] * self.channels

    @property
    def windowed(self) -> bool:
        """Whether rows of the product differ from the pixels in order."""
        simple = self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)
        return not simple


def problem(metadata: dict[str, Any], x: Tensor) -> Problem:
    """Describes the product for an input; convolutions keep its memory format.

    Args:
        metadata: description of the layer, see ``IntegerLayer.metadata``.
        x: ``(rows, in)`` for linear, ``(batch, in, height, width)`` for conv2d, any strides.

    Raises:
        ValueError: the input does not fit the layer.
    """
    oracle.check_shape(metadata, tuple(x.shape))
    out, channels, *kernel = metadata["weight_shape"]
    if metadata["kind"] == "linear":
        rows = x.shape[0]
        return Problem(
            batch=1,
            size=(1, rows),
            padding=(0, 0),
            channels=channels,
            groups=1,
            columns=out,
            out_size=(1, rows),
            kernel=(1, 1),
            stride=(1, 1),
            dilation=(1, 1),
            in_strides=(0, x.stride(1), 0, x.stride(0)),
            out_shape=(rows, out),
            out_strides=(out, 1),
            out_pitch=(0, 1, out),
        )
    batch, _, height, width = x.shape
    out_height, out_width = oracle.output_size(metadata, height, width)
    pixels = out_height * out_width
    if x.stride(1) == 1 and not x.is_contiguous():  # channels_last, or channels of it
        pitch = (pixels * out, 1, out)
    else:
        pitch = (pixels * out, pixels, 1)
    groups = metadata["groups"]
    return Problem(
        batch=batch,
        size=(height, width),
        padding=_pair(metadata["padding"]),
        channels=channels,
        groups=groups,
        columns=out // groups,
        out_size=(out_height, out_width),
        kernel=_pair(kernel),
        stride=_pair(metadata["stride"]),
        dilation=_pair(metadata["dilation"]),
        in_strides=(x.stride(0), x.stride(1), x.stride(2), x.stride(3)),
        out_shape=(batch, out, out_height, out_width),
        out_strides=(pitch[0], pitch[1], out_width * pitch[2], pitch[2]),
        out_pitch=pitch,
    )


def _pair(values: list[int]) -> Pair:
    return int(values[0]), int(values[1])
