"""Leaves whose activation parameters differ by row: found at run time, or looked up by token.

Codes are those of the fake path. The kernels make them, ranges included; without kernels torch
does, and the leaf multiplies them with an activation scale of 1. What the zero points add is taken
off in integers, and the scales of row and column meet afterwards:

    y[r, n] = sum_g s[r, g] * w[g, n] * (T0[r, g, n] - z[r, g] * sum_k (c[g, n, k] - zw[g, n])) + b
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantarena.methods.core.affine import QuantParams, affine_params
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.float_ops import extremes
from quantarena.methods.core.kernels.groups.call import Branch, CallCache, GroupCall, Groups
from quantarena.methods.core.packed.nodes.dense import DenseLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import (
    Build,
    Document,
    Node,
    Tensors,
    like_input,
    take,
)
from quantarena.methods.core.quantizers.activation import ActQuantizer, DynamicActQuantizer

_CHUNK = 1 << 18
"""Accumulators held at once: the epilogue passes over them several times, so they fit a cache."""


class RowScaledLayer(Node):
    """A linear layer whose tokens have ranges of their own, dynamic or by position.

    One kernel call computes all rows and K-groups: a grouped 1x1 convolution over the rows.

    Attributes:
        leaf: codes (G * O, K / G, 1, 1) in G groups, activation scale 1, zero point 0.
        quantizer: as in the fake path; a static one has groups along an axis of tokens.
        in_mult: (K,), or None.
        bias: (O,), or None.
    """

    form: ClassVar[str] = "rows"
    in_mult: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        leaf: PackedLayer,
        quantizer: ActQuantizer | DynamicActQuantizer,
        in_mult: Tensor | None,
        bias: Tensor | None,
    ) -> None:
        super().__init__()
        self.leaf = leaf
        self.groups = int(leaf.metadata["groups"])
        self.quantizer = own_quantizer(quantizer)
        self.entries = quantizer.steps if isinstance(quantizer, ActQuantizer) else 0
        self._calls = CallCache()
        for name, value in (("in_mult", in_mult), ("bias", bias)):
            self.register_buffer(name, None if value is None else value.detach().clone())

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        y = self.in_one_call(x, step)
        return self.by_parts(x, step) if y is None else y

    def by_parts(self, x: Tensor, step: int) -> Tensor:
        """The output from :meth:`accumulators`, scaled in torch; without native kernels."""
        out, groups = self.weight_shape[0], self.groups
        codes, scale, zero = self._codes(x, step)
        weight_scale = self.leaf.weight_scale.view(groups, out)
        y = x.new_empty(len(codes), out)
        size = max(1, _CHUNK // (groups * out))
        for at in range(0, len(codes), size):
            rows = slice(at, at + size)
            total = self._accumulate(codes[rows], zero[rows])
            part = total * (scale[rows].unsqueeze(2) * weight_scale)
            y[rows] = part.sum(1) if self.bias is None else part.sum(1) + self.bias
        return y.view(*x.shape[:-1], out)

    def accumulators(self, x: Tensor, step: int = 0) -> Tensor:
        """The integers before scaling, zero points taken off, int32 (..., G, O)."""
        codes, _, zero = self._codes(x, step)
        return self._accumulate(codes, zero).view(*x.shape[:-1], self.groups, -1)

    def _accumulate(self, codes: Tensor, zero: Tensor) -> Tensor:
        rows, inputs = codes.shape
        pixels = codes.view(1, 1, rows, inputs).permute(0, 3, 1, 2)
        total = self.leaf.accumulators(pixels).permute(0, 2, 3, 1).reshape(rows, self.groups, -1)
        depth = inputs // self.groups
        sums = self.leaf.weight_sum
        if self.leaf.weight_zero is not None:
            sums = sums - depth * self.leaf.weight_zero
        return total - zero.unsqueeze(2) * sums.view(self.groups, -1)

    def _codes(self, x: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (R, K) as float32, scales (R, G) and zero points (R, G) int32."""
        codes, params, groups = quantized_codes(self.quantizer, x, self.in_mult, step)
        scale, zero = params.scale, params.zero_point
        if groups:
            scale, zero = scale.squeeze(-1), zero.squeeze(-1)
        scale, zero = self._spread(scale, zero, x.shape[:-1])
        return codes.reshape(-1, x.shape[-1]).contiguous(), scale, zero

    def in_one_call(self, x: Tensor, step: int, branch: Branch | None = None) -> Tensor | None:
        """The output where kernels make the codes, a branch included; None where there are none."""
        if self.leaf.library.run_groups is None or torch.compiler.is_compiling():
            return None
        quantizer = self.quantizer
        if isinstance(quantizer, ActQuantizer):
            assert quantizer.clock is not None
            with quantizer.clock.at(step):
                params = quantizer.at(x)
        elif x.dim() < 4 and self.groups * (quantizer.group_size or x.shape[-1]) == x.shape[-1]:
            even = quantizer.symmetric and quantizer.bits > 1
            found = native.FOUND_SYMMETRIC if even else native.FOUND
            return self._call(found, branch)(x, 0)
        else:  # ranges are those of the product
            params = self._ranges(x if self.in_mult is None else x * self.in_mult)
        rows = self._spread(params.scale, params.zero_point, x.shape[:-1])
        scale, zero = (value.contiguous() for value in rows)
        return self._call(native.BY_ROW, branch)(x, 0, rows=(scale, zero))

    def _call(self, ranges: int, branch: Branch | None) -> GroupCall:
        key = (self.leaf.panels, self.in_mult, self.bias, ranges, branch)
        return self._calls.get(key, lambda: self._new_call(ranges, branch))

    def _new_call(self, ranges: int, branch: Branch | None) -> GroupCall:
        leaf, (out, inputs) = self.leaf, self.weight_shape
        edge = torch.arange(self.groups + 1, dtype=torch.int32) * (inputs // self.groups)
        own = {"in_mult": self.in_mult, "bias": self.bias}
        buffers = {**dict(leaf.named_buffers()), **{n: v for n, v in own.items() if v is not None}}
        linear = {**leaf.metadata, "kind": "linear", "weight_shape": [out, inputs], "groups": 1}
        return GroupCall(
            leaf.library,
            linear,
            leaf.uses_pairs,
            buffers,
            Groups(edge, ranges=ranges, apart=self.groups > 1),
            panels=leaf.metadata,
            branch=branch,
        )

    def _ranges(self, x: Tensor) -> QuantParams:
        """The ranges of a dynamic quantizer, (..., G), from one native pass."""
        quantizer = self.quantizer
        assert isinstance(quantizer, DynamicActQuantizer)
        if x.dim() == 4:  # one range for a whole sample
            return quantizer.params(x)
        width = quantizer.group_size or x.shape[-1]
        if x.shape[-1] % width:
            raise ValueError(f"groups of {width} do not divide {x.shape[-1]} channels")
        low, high = extremes(self.leaf.library, x, width)
        return affine_params(low, high, quantizer.bits, quantizer.symmetric)

    def _spread(self, scale: Tensor, zero: Tensor, lead: torch.Size) -> tuple[Tensor, Tensor]:
        """Scales (R, G) and zero points (R, G) int32 from ones that end in the token's groups."""

        def by_row(value: Tensor) -> Tensor:
            groups = value.shape[-1]
            if self.groups % groups:
                raise ValueError(f"ranges of shape {tuple(value.shape)} are not those of tokens")
            value = value.expand(*lead, groups).reshape(-1, groups)
            return value.repeat_interleave(self.groups // groups, dim=1)

        return by_row(scale), by_row(zero).to(torch.int32)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(O, K)."""
        out, depth, _, _ = self.leaf.weight_shape
        return (out // self.groups, depth * self.groups)

    def describe(self) -> Document:
        """See ``Node``."""
        present = [name for name in ("in_mult", "bias") if getattr(self, name) is not None]
        quantizer = describe_quantizer(self.quantizer)
        return {
            "form": self.form,
            "leaf": self.leaf.describe(),
            "quantizer": quantizer,
            "tensors": present,
        }

    @classmethod
    def rebuild(
        cls, document: Mapping[str, Any], tensors: Tensors, build: Build
    ) -> "RowScaledLayer":
        """See ``Node``."""
        leaf = build(document["leaf"], take(tensors, "leaf."))
        if not isinstance(leaf, PackedLayer) or isinstance(leaf, DenseLayer):  # no panels to read
            raise ValueError("tokens with ranges of their own need packed codes")
        quantizer = build_quantizer(document["quantizer"], take(tensors, "quantizer."))
        optional = {name: tensors.pop(name) for name in document["tensors"]}
        return cls(leaf, quantizer, optional.get("in_mult"), optional.get("bias"))


class SampleScaledLayer(Node):
    """A convolution whose samples get their ranges when they arrive.

    Zero points pad the image and so enter the kernel: a leaf's table has one entry for each zero
    point that can be, and samples that share one run together.

    Attributes:
        leaves: over consecutive ranges of input channels, each with its own weight scales.
        quantizer: one range a sample.
        in_mult: (K,), or None.
        bias: (O,), or None.
    """

    form: ClassVar[str] = "samples"
    in_mult: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        leaves: Sequence[PackedLayer],
        quantizer: DynamicActQuantizer,
        in_mult: Tensor | None,
        bias: Tensor | None,
    ) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(leaves)
        self.quantizer = own_quantizer(quantizer)
        for name, value in (("in_mult", in_mult), ("bias", bias)):
            self.register_buffer(name, None if value is None else value.detach().clone())

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        centred, scale, zero = self._codes(x)
        y: Tensor | None = None
        for leaf, total in zip(self._leaves(), self._totals(centred, zero), strict=True):
            part = total * (scale * leaf.weight_scale.view(1, -1, 1, 1))
            y = part if y is None else y + part
        assert y is not None
        return like_input(y if self.bias is None else y + self.bias.view(-1, 1, 1), x)

    def accumulators(self, x: Tensor) -> list[Tensor]:
        """The integers of each leaf before scaling, int32 in the shape of the output."""
        centred, _, zero = self._codes(x)
        return self._totals(centred, zero)

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes less zero points, scales (B, 1, 1, 1), zero points (B,) int64."""
        mult = None if self.in_mult is None else self.in_mult.view(-1, 1, 1)
        codes, params, _ = quantized_codes(self.quantizer, x, mult, 0)
        zero = params.zero_point.expand(x.shape[0], 1, 1, 1)
        return codes - zero, params.scale, zero.flatten().long()

    def _totals(self, centred: Tensor, zero: Tensor) -> list[Tensor]:
        totals, start = [], 0
        for leaf in self._leaves():
            piece = centred[:, start : (start := start + leaf.in_channels)]
            total: Tensor | None = None
            for value in torch.unique(zero).tolist():
                rows = zero == value
                part = leaf.accumulators(piece[rows], value if leaf.entries else 0)
                if total is None:
                    total = part.new_empty(len(zero), *part.shape[1:])
                total[rows] = part
            assert total is not None
            totals.append(total)
        return totals

    def _leaves(self) -> list[PackedLayer]:
        return [leaf for leaf in self.leaves if isinstance(leaf, PackedLayer)]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight: the leaves' side by side."""
        shapes = [leaf.weight_shape for leaf in self._leaves()]
        return (shapes[0][0], sum(shape[1] for shape in shapes), *shapes[0][2:])

    def describe(self) -> Document:
        """See ``Node``."""
        present = [name for name in ("in_mult", "bias") if getattr(self, name) is not None]
        return {
            "form": self.form,
            "leaves": [leaf.describe() for leaf in self._leaves()],
            "quantizer": describe_quantizer(self.quantizer),
            "tensors": present,
        }

    @classmethod
    def rebuild(
        cls, document: Mapping[str, Any], tensors: Tensors, build: Build
    ) -> "SampleScaledLayer":
        """See ``Node``."""
        nodes = [
            build(leaf, take(tensors, f"leaves.{i}.")) for i, leaf in enumerate(document["leaves"])
        ]
        leaves = [node for node in nodes if isinstance(node, PackedLayer)]
        quantizer = build_quantizer(document["quantizer"], take(tensors, "quantizer."))
        if not leaves or len(leaves) < len(nodes) or isinstance(quantizer, ActQuantizer):
            raise ValueError("samples with ranges of their own need packed codes")
        optional = {name: tensors.pop(name) for name in document["tensors"]}
        return cls(leaves, quantizer, optional.get("in_mult"), optional.get("bias"))


def quantized_codes(
    quantizer: ActQuantizer | DynamicActQuantizer, x: Tensor, mult: Tensor | None, step: int
) -> tuple[Tensor, QuantParams, int]:
    """Codes in the shape of ``x``, bit for bit those of the fake path.

    Returns:
        Codes, their parameters, and the K-groups that those broadcast over (0: over ``x``).
    """
    if isinstance(quantizer, ActQuantizer):
        assert quantizer.clock is not None
        with quantizer.clock.at(step):
            return *quantizer.codes(x, mult), 0
    groups = x.shape[-1] // quantizer.group_size if quantizer.group_size else 0
    return *quantizer.codes(x, mult), groups


def own_quantizer(
    quantizer: ActQuantizer | DynamicActQuantizer,
) -> ActQuantizer | DynamicActQuantizer:
    """A copy whose clock is private: the node that holds it says the entry."""
    if isinstance(quantizer, DynamicActQuantizer):
        return DynamicActQuantizer(
            quantizer.bits, symmetric=quantizer.symmetric, group_size=quantizer.group_size
        )
    copy = ActQuantizer(quantizer.bits, CallClock())
    copy.load({name: value.clone() for name, value in quantizer.state().items()})
    return copy


def describe_quantizer(quantizer: nn.Module) -> Document:
    """The settings of a quantizer that its tensors do not hold."""
    if isinstance(quantizer, DynamicActQuantizer):
        return {
            "bits": quantizer.bits,
            "symmetric": quantizer.symmetric,
            "group": quantizer.group_size,
        }
    assert isinstance(quantizer, ActQuantizer)
    return {"bits": quantizer.bits, "axis": quantizer.axis}


def build_quantizer(
    document: Mapping[str, Any], tensors: Tensors
) -> ActQuantizer | DynamicActQuantizer:
    """The inverse of ``describe_quantizer`` and ``state_dict``."""
    if "symmetric" in document:
        return DynamicActQuantizer(
            document["bits"], symmetric=document["symmetric"], group_size=document["group"]
        )
    quantizer = ActQuantizer(document["bits"], CallClock())
    scale, zero = tensors["scale"], tensors["zero_point"]
    quantizer.set_groups(document["axis"], tensors["ids"], scale, zero)
    return quantizer
