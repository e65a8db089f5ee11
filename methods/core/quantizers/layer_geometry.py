"""The geometry of a convolution or linear layer, and its product with any weight of that shape."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.quantizers.patches import Window

Quantizable = nn.Conv1d | nn.Conv2d | nn.Linear


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """The settings by which a layer moves over its input.

    Attributes:
        spatial: number of spatial axes: 0 for a linear layer, 1 or 2 for a convolution.
        stride: one number for each spatial axis, as ``padding`` and ``dilation``.
        padding: zeros put around the input.
        dilation: distance between the taps of the kernel.
        groups: channel groups of a convolution; 1 for a linear layer.
    """

    spatial: int = 0
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, module: Quantizable) -> "LayerGeometry":
        """The geometry of a full-precision layer.

        Raises:
            Unsupported: a convolution whose padding is not a number of zeros.
        """
        if isinstance(module, nn.Linear):
            return cls()
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise Unsupported("only convolutions with numeric zero padding can be quantized")
        stride, padding, dilation = (
            tuple(int(v) for v in values)
            for values in (module.stride, module.padding, module.dilation)
        )
        return cls(len(module.kernel_size), stride, padding, dilation, module.groups)

    @property
    def is_conv(self) -> bool:
        """Whether channels are axis 1 of the input; for a linear layer they are the last axis."""
        return self.spatial > 0

    @property
    def channel_axis(self) -> int:
        """The axis of the input, and of the output, that holds the channels."""
        return 1 if self.is_conv else -1

    def over_channels(self, values: Tensor) -> Tensor:
        """One value for each channel, (K,), shaped to broadcast over an input or output."""
        return values.reshape(-1, *[1] * self.spatial) if self.is_conv else values

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output with this weight and bias."""
        if not self.is_conv:
            return F.linear(x, weight, bias)
        convolve = F.conv2d if self.spatial == 2 else F.conv1d
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def pointwise(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product of every token or pixel with a matrix (O, K)."""
        if not self.is_conv:
            return F.linear(x, weight)
        weight = weight.reshape(*weight.shape, *[1] * self.spatial)
        return F.conv2d(x, weight) if self.spatial == 2 else F.conv1d(x, weight)

    def window(self, kernel: Sequence[int]) -> Window:
        """The input pixels that one output pixel of a 2-d convolution reads."""
        return Window.of(kernel, self.stride, self.padding, self.dilation)

    def as_image(self) -> dict[str, tuple[int, ...]]:
        """Stride, padding and dilation in two directions; empty for a linear layer.

        The packed kernels know images only: a 1-d convolution is one of height 1.
        """
        if not self.is_conv:
            return {}
        along = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        if self.spatial == 2:
            return along
        idle = {"stride": 1, "padding": 0, "dilation": 1}  # along the height that was put in
        return {name: (idle[name], *values) for name, values in along.items()}


def as_image_weight(weight: Tensor) -> Tensor:
    """A 1-d convolution's weight with a height of 1; any other weight as it is."""
    return weight.unsqueeze(2) if weight.dim() == 3 else weight
