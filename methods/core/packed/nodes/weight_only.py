"""A leaf with packed weights and floating-point inputs: weights are unpacked when it runs."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.bits import FP_WIDTH
from quantarena.methods.core.kernels.formats import pack_codes, unpack_codes
from quantarena.methods.core.packed.nodes.node import Build, Document, Node, Tensors, like_input

_GEOMETRY = ("stride", "padding", "dilation", "groups")
_OPTIONAL = ("in_mult", "bias")


class WeightOnlyLayer(Node):
    """A linear layer or 2-d convolution that stores codes and computes in floating point.

    Saves memory, not time: the float weight is made anew for each call and dropped after it.

    Attributes:
        metadata: weight shape, bits and geometry, JSON types.
        codes: canonical code stream, see ``formats.pack_codes``.
        weight_scale: (O, G), one for each K-group.
        weight_zero: (O, G) int16, in the offset domain.
        in_mult: (K,), or None.
        bias: (O,), or None.
    """

    form: ClassVar[str] = "weight_only"
    backend = "weight-only"
    codes: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    in_mult: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        bits: int,
        scale: Tensor,
        zero: Tensor,
        *,
        in_mult: Tensor | None = None,
        bias: Tensor | None = None,
        geometry: Mapping[str, Any] | None = None,
    ) -> None:
        """Packs a weight.

        Args:
            codes: (O, K) or (O, K, h, w) integers in the offset domain.
            bits: width of a code.
            scale: (O, G).
            zero: (O, G), in the offset domain.
            in_mult: (K,), multiplies the input.
            bias: (O,).
            geometry: stride, padding, dilation and groups of a convolution.
        """
        super().__init__()
        self.metadata: Document = {
            "weight_shape": list(codes.shape),
            "weight_bits": bits,
            "act_bits": FP_WIDTH,
            **{n: v if n == "groups" else list(v) for n, v in (geometry or {}).items()},
        }
        self.register_buffer("codes", pack_codes(codes, bits))
        self.register_buffer("weight_scale", scale.detach().float().contiguous())
        self.register_buffer("weight_zero", zero.to(torch.int16).contiguous())
        for name, value in (("in_mult", in_mult), ("bias", bias)):
            self.register_buffer(name, None if value is None else value.detach().clone())

    def float_weight(self) -> Tensor:
        """The float weight, as the fake path makes it."""
        shape, groups = self.weight_shape, self.weight_scale.shape[1]
        codes = unpack_codes(self.codes, self.metadata["weight_bits"], shape).float()
        codes = codes.view(shape[0], groups, -1)
        value = (codes - self.weight_zero.unsqueeze(2)) * self.weight_scale.unsqueeze(2)
        return value.view(shape)

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        if len(self.weight_shape) == 2:
            x = x if self.in_mult is None else x * self.in_mult
            return F.linear(x, self.float_weight(), self.bias)
        x = x if self.in_mult is None else x * self.in_mult.view(-1, 1, 1)
        meta = [self.metadata[name] for name in _GEOMETRY]
        return like_input(F.conv2d(x, self.float_weight(), self.bias, *meta), x)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.metadata["weight_shape"])

    @property
    def weight_bits_observed(self) -> float:
        """Bits a code, read from the length of the stream."""
        return self.codes.numel() * 8 / torch.Size(self.weight_shape).numel()

    @property
    def packed_bytes(self) -> int:
        """Bytes of everything that is kept for inference."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def describe(self) -> Document:
        """See ``Node``."""
        present = [name for name in _OPTIONAL if getattr(self, name) is not None]
        return {"form": self.form, "meta": self.metadata, "tensors": present}

    @classmethod
    def rebuild(
        cls, document: Mapping[str, Any], tensors: Tensors, build: Build
    ) -> "WeightOnlyLayer":
        """See ``Node``."""
        meta = document["meta"]
        if "codes" not in tensors:
            raise ValueError("has no codes")
        scale = tensors.pop("weight_scale")
        zero = tensors.pop("weight_zero", torch.zeros(scale.shape, dtype=torch.int16))
        codes = unpack_codes(tensors.pop("codes"), meta["weight_bits"], tuple(meta["weight_shape"]))
        geometry = {name: meta[name] for name in _GEOMETRY if name in meta}
        optional = {name: tensors.pop(name) for name in document["tensors"]}
        return cls(codes, meta["weight_bits"], scale, zero, geometry=geometry, **optional)
