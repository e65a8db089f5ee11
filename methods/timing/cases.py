"""Shapes of the kernel benchmark, with layers and inputs to time."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.kernels.formats import IntegerLayer, code_range
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.wrappers import MixedWidthLayer

LINEAR = (
    (256, 320, 320),
    (1024, 320, 1280),
    (4096, 128, 128),
    (64, 1280, 1280),
    (256, 256, 768),
    (1, 1280, 1280),
)
"""Rows, input features, output features."""
CONVOLUTION = (
    (16, 64, 32, 64),
    (16, 128, 16, 128),
    (8, 256, 8, 256),
    (1, 320, 64, 320),
    (1, 64, 32, 64),
)
"""Batch, input channels, height = width, output channels; 3x3, stride 1, padding 1."""
MIXED = "mixed 3+4"
"""Name of a layer with half of its channels at 3 bits and half at 4."""
BITS = ((8, 8), (4, 8), (3, 8), (2, 8), (4, 4), (2, 4))


@dataclass(frozen=True, slots=True)
class Case:
    """One layer shape: ``linear`` (rows, in, out) or ``conv2d`` (batch, in, size, out)."""

    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Short name for tables and test ids."""
        if self.kind == "linear":
            return "lin {}x{}x{}".format(*self.shape)
        batch, inputs, size, outputs = self.shape
        return f"conv {batch}x{inputs}x{size}x{size}->{outputs}"

    @property
    def products(self) -> int:
        """Number of multiply-accumulates."""
        return math.prod(self.shape) * (1 if self.kind == "linear" else 9 * self.shape[2])

    @property
    def outputs(self) -> int:
        """Number of output elements."""
        shape = self.shape
        return shape[0] * shape[-1] * (1 if self.kind == "linear" else shape[2] ** 2)

    @property
    def inputs(self) -> int:
        """Number of input elements."""
        return self.shape[0] * self.shape[1] * (1 if self.kind == "linear" else self.shape[2] ** 2)


@dataclass(frozen=True, slots=True)
class Roofline:
    """The work of a layer, and the fastest that this machine could do it.

    Attributes:
        products: number of multiply-accumulates.
        bytes: bytes that must move: packed layer, input and output, once each.
        rate: multiply-accumulates per second of the micro-kernel alone.
        bandwidth: bytes per second.
    """

    products: int
    bytes: int
    rate: float
    bandwidth: float

    @property
    def seconds(self) -> float:
        """The shortest possible time: the longer one of computing and moving."""
        return max(self.products / self.rate, self.bytes / self.bandwidth)


@dataclass(slots=True)
class Timing:
    """Measured times of a case, in seconds per call.

    Attributes:
        case: the layer.
        fp32: fp32 times by memory format.
        packed: packed times by widths, with ``/last`` for channels_last.
        rivals: times of other 8-bit layers.
        roofline: rooflines by widths.
    """

    case: Case
    fp32: dict[str, float]
    packed: dict[str, float] = field(default_factory=dict)
    rivals: dict[str, float] = field(default_factory=dict)
    roofline: dict[str, Roofline] = field(default_factory=dict)

    @property
    def base(self) -> float:
        """Time of the faster fp32 layer."""
        return min(self.fp32.values())

    def best(self, bits: str) -> float:
        """Time of the packed layer in its faster memory format."""
        return min(t for name, t in self.packed.items() if name.split("/")[0] == bits)

    def ratio(self, bits: str) -> float:
        """Speed-up over the faster fp32 layer."""
        return self.base / self.best(bits)


def cases() -> list[Case]:
    """The shapes of the table."""
    return [Case("linear", s) for s in LINEAR] + [Case("conv2d", s) for s in CONVOLUTION]


def gaussian_layer(
    case: Case, weight_bits: int, act_bits: int, seed: int = 0
) -> tuple[IntegerLayer, Tensor]:
    """A layer of per-channel symmetric codes of Gaussian weights, and the float weights."""
    make = torch.Generator().manual_seed(seed)
    shape: tuple[int, ...] = (case.shape[-1], case.shape[1])
    options: dict[str, Any] = {}
    if case.kind == "conv2d":
        shape, options = (*shape, 3, 3), {"padding": (1, 1)}
    weight = torch.randn(shape, generator=make)
    low, high = code_range(weight_bits)
    scale = weight.flatten(1).abs().amax(dim=1) / max(high, 1)
    codes = (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round().clamp(low, high)
    top = (1 << act_bits) - 1
    layer = IntegerLayer(
        kind="linear" if case.kind == "linear" else "conv2d",
        weight_codes=codes.to(torch.int8),
        weight_bits=weight_bits,
        weight_scale=scale,
        weight_zero=torch.zeros(shape[0], dtype=torch.int32),
        act_bits=act_bits,
        act_scale=torch.tensor(8 / top),
        act_zero=torch.tensor((top + 1) // 2),
        bias=torch.randn(shape[0], generator=make),
        **options,
    )
    return layer, weight


def mixed_layer(case: Case, widths: tuple[int, ...], act_bits: int) -> MixedWidthLayer:
    """A layer with equally many output channels of each width, in random order."""
    outputs = case.shape[-1]
    order = torch.randperm(outputs, generator=torch.Generator().manual_seed(3))
    rows = [chosen.sort().values for chosen in order.tensor_split(len(widths))]
    parts = []
    for index, bits in zip(rows, widths, strict=True):
        layer, _ = gaussian_layer(case, bits, act_bits)
        names = ("weight_codes", "weight_scale", "weight_zero", "bias")
        parts.append(PackedLayer(replace(layer, **{n: getattr(layer, n)[index] for n in names})))
    return MixedWidthLayer(parts, torch.cat(rows).argsort())


def example_input(case: Case) -> Tensor:
    """A normally distributed input of a case."""
    size = case.shape[:2] if case.kind == "linear" else (*case.shape[:2], *[case.shape[2]] * 2)
    return torch.randn(size, generator=torch.Generator().manual_seed(1))
