"""Packed convolutions in groups, whose panels would be mostly padding.

A panel has room for 16 output channels and for channels of the input in fours. A depthwise
convolution has one of each a group, so that its panels take 85 times what its codes do, and more
than its weights in floating point. A :class:`DenseLayer` holds the code stream of checkpoints
instead. It multiplies codes as float32 numbers, whose sums are exact: they stay below 2**24.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.kernels import native, oracle
from quantarena.methods.core.kernels.formats import (
    IntegerLayer,
    largest_sum,
    pack_codes,
    unpack_codes,
)
from quantarena.methods.core.kernels.layout import panel_bytes
from quantarena.methods.core.packed.nodes.leaf import CANONICAL, PackedLayer

MOST_PADDING = 4
"""Panels that take more than so many times the bytes of their codes are not made."""
EXACT_SUM = 1 << 24
"""Integers up to this one, and sums of them that stay within it, are exact in float32."""


class DenseLayer(PackedLayer):
    """A convolution in groups that stores nothing but its codes and constants.

    Same ``state_dict`` and integers as a ``PackedLayer``; no native kernel runs.

    Attributes:
        codes: canonical code stream, see ``formats.pack_codes``.
    """

    form: ClassVar[str] = "dense"
    codes: Tensor

    def __init__(self, layer: IntegerLayer, library: native.Library | None = None) -> None:
        """See ``PackedLayer``.

        Raises:
            ValueError: sums would be too long for float32, or it is no convolution.
        """
        if layer.kind != "conv2d" or not _exact(layer):
            raise ValueError("a dense layer is a convolution with sums below 2**24")
        super().__init__(layer, library)

    def _pack(self, layer: IntegerLayer, pair: bool | None = None) -> None:
        self.metadata = layer.metadata()
        self.entries = layer.act_scale.numel() if layer.act_scale.dim() else 0
        self._pair = False
        self.register_buffer("codes", pack_codes(layer.weight_codes, layer.weight_bits))
        for name in CANONICAL:
            self.register_buffer(name, getattr(layer, name))
        if not layer.weight_zero.any():
            self.weight_zero = None
        self._forget()

    def _codes(self) -> Tensor:
        return unpack_codes(self.codes, self.metadata["weight_bits"], self.weight_shape)

    def native_call(self) -> None:
        """None: no native kernel reads the stream."""

    def repack(self, pair: bool) -> None:
        """Raises ValueError: there are no panels."""
        raise ValueError("a dense layer has no panels")

    def _run(self, x: Tensor, step: int, into: Tensor | None, flags: int) -> Tensor:
        oracle.check_shape(self.metadata, tuple(x.shape))
        if x.dtype is not torch.float32 or not x.is_cpu:
            raise ValueError(f"packed layers take float32 on the CPU, got {x.dtype} on {x.device}")
        if not 0 <= step < self.act_scale.numel():
            raise IndexError(f"step {step} is not in the table of {self.act_scale.numel()}")
        scale, zero = (t.reshape(-1)[step] for t in (self.act_scale, self.act_zero))
        top = (1 << self.metadata["act_bits"]) - 1
        code = oracle.centred_codes(x, scale, int(zero), top, self._mult())
        weight = self._codes().to(torch.float32)
        if self.weight_zero is not None:
            weight -= self.weight_zero.view(-1, 1, 1, 1)
        meta = [self.metadata[name] for name in ("stride", "padding", "dilation", "groups")]
        total = F.conv2d(code, weight, None, *meta)
        if flags & native.INTEGER:
            return total.to(torch.int32)
        y = total.mul_((scale * self.weight_scale).view(-1, 1, 1))
        if self.bias is not None:
            y += self.bias.view(-1, 1, 1)
        if into is not None:
            return into.add_(y)
        last = self.writes_last or oracle.channels_last(x)
        return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def _mult(self) -> Tensor | None:
        return None if self.in_mult is None else self.in_mult.view(-1, 1, 1)

    @property
    def weight_bits_observed(self) -> float:
        """Bits a code, read from the length of the stream."""
        return self.codes.numel() * 8 / torch.Size(self.weight_shape).numel()


def packed_leaf(layer: IntegerLayer, library: native.Library | None = None) -> PackedLayer:
    """The module that runs a layer: dense where panels would be mostly padding.

    Args:
        layer: the layer.
        library: kernels to run on; by default those of this process.
    """
    return (DenseLayer if is_dense(layer) else PackedLayer)(layer, library)


def is_dense(layer: IntegerLayer) -> bool:
    """Whether a layer is a convolution in groups that panels would enlarge, with short sums."""
    if layer.groups == 1:
        return False
    promised = layer.weight_codes.numel() * layer.weight_bits / 8
    grows = panel_bytes(layer) > MOST_PADDING * promised
    return grows and _exact(layer)


def _exact(layer: IntegerLayer) -> bool:
    """Whether float32 holds every sum, whatever the input."""
    bound = largest_sum(layer.weight_codes, layer.weight_zero, layer.act_bits)
    return bound < EXACT_SUM
