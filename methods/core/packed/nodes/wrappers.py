"""Nodes above the leaves: channels of several widths, float branches, views."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.call import NativeCall
from quantarena.methods.core.kernels.groups.call import (
    Branch,
    CallCache,
    GroupCall,
    Groups,
    for_kernels,
    is_for_kernels,
)
from quantarena.methods.core.packed.nodes.channel_sum import check_permutation
from quantarena.methods.core.packed.nodes.fused_outputs import joinable, joint_call, joint_chunks
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import (
    Build,
    Document,
    Node,
    Tensors,
    like_input,
    node_of,
    take,
)
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer


class MixedWidthLayer(Node):
    """Output channels of several widths: one node a width.

    Packed parts run as one call, which puts their channels in order; others one after the other.

    Attributes:
        back: (O,) int32, where each output channel lies in the parts' outputs side by side.
        chunk_start: ``Chunks.start`` of the whole layer; None where parts run on their own.
        chunk_units: ``Chunks.units``, likewise.
        writes_last: see ``PackedLayer``.
    """

    form: ClassVar[str] = "mixed"
    back: Tensor
    chunk_start: Tensor | None
    chunk_units: Tensor | None
    writes_last: bool = False

    def __init__(self, parts: Sequence[Node], back: Tensor) -> None:
        super().__init__(tuple(parts))
        self.parts = nn.ModuleList(parts)
        self.register_buffer("back", back.to(torch.int32))
        self._dim = -1 if len(self.weight_shape) == 2 else 1
        check_permutation(self.back, self.weight_shape[0])
        self._join()

    def _join(self) -> None:
        """Plans the call that all parts share, from their codes."""
        leaves = [part for part in self.parts if isinstance(part, PackedLayer)]
        if len(leaves) < len(self.parts):
            leaves = []
        chunks = joint_chunks(leaves, self.back) if leaves and joinable(leaves) else None
        start, units = (None, None) if chunks is None else (chunks.start, chunks.units)
        self.register_buffer("chunk_start", start, persistent=False)
        self.register_buffer("chunk_units", units, persistent=False)
        self._call: NativeCall | None = None
        if start is not None and units is not None:
            self._call = joint_call(leaves, self.back, start, units)
        self._joined: list[tuple[PackedLayer, NativeCall | None]] | None
        self._joined = [(leaf, leaf.native_call()) for leaf in leaves]

    def _native(self) -> NativeCall | None:
        """The call that all parts share; anew where one of them was repacked or replaced.

        None where a compiler looks on, which sees the operators of the parts.
        """
        if torch.compiler.is_compiling():
            return None
        if self._joined is None:
            self._join()
        parts = self.parts._modules.values()
        for part, (leaf, call) in zip(parts, self._joined or (), strict=False):
            if part is not leaf or leaf.native_call() is not call:
                self._join()
                break
        return self._call

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        call = self._native()
        if call is None:
            return self.by_parts(x, step)
        return call(x, step if self.entries else 0, last=self.writes_last)

    def by_parts(self, x: Tensor, step: int) -> Tensor:
        """The output put together from those of the parts."""
        y = torch.cat([self.below(node_of(part), x, step) for part in self.parts], self._dim)
        return like_input(y.index_select(self._dim, self.back), x)

    @property
    def in_place(self) -> bool:
        """See ``Node``."""
        return self._native() is not None

    def add_to(self, y: Tensor, x: Tensor, step: int | None = None) -> Tensor:
        """See ``PackedLayer.add_to``; parts must share a call."""
        call = self._native()
        assert call is not None
        entry = self._step if step is None else step
        return call(x, entry if self.entries else 0, y, native.ACCUMULATE, last=self.writes_last)

    def accumulators(self, x: Tensor, step: int | None = None) -> Tensor:
        """See ``PackedLayer.accumulators``; of packed parts."""
        call, entry = self._native(), self._step if step is None else step
        if call is None:
            sums = [leaf.accumulators(x, entry) for leaf, _ in self._joined or ()]
            return torch.cat(sums, self._dim).index_select(self._dim, self.back)
        return call(x, entry if self.entries else 0, None, native.INTEGER, last=self.writes_last)

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses, which a copy cannot use."""
        return {**self.__dict__, "_call": None, "_joined": None}

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight: the parts' one above the other."""
        shapes = [node_of(part).weight_shape for part in self.parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def describe(self) -> Document:
        """See ``Node``."""
        return {"form": self.form, "parts": [node_of(part).describe() for part in self.parts]}

    @classmethod
    def rebuild(
        cls, document: Mapping[str, Any], tensors: Tensors, build: Build
    ) -> "MixedWidthLayer":
        """See ``Node``."""
        parts = [
            build(part, take(tensors, f"parts.{i}.")) for i, part in enumerate(document["parts"])
        ]
        return cls(parts, tensors.pop("back"))


class Wrapper(Node):
    """A node around one other; the weight's shape is that one's."""

    def __init__(self, inner: Node) -> None:
        super().__init__((inner,))
        self.inner = inner

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the inner weight."""
        return self.inner.weight_shape

    def describe(self) -> Document:
        """See ``Node``."""
        return {"form": self.form, "inner": self.inner.describe()}


class LowRankLayer(Wrapper):
    """Adds a branch in floating point, ``up @ (down x)`` (SVDQuant, arXiv:2411.05007).

    The native call of the inner layer computes it too, where that is one call: ``down x`` from the
    input that it quantizes, and the product with ``up`` as what its sums are added to.

    Attributes:
        down: (r, K, ...), input multipliers folded in; in memory as ``for_kernels`` lays it out.
        up: (O, r), outputs side by side in memory.
        geometry: stride, padding and dilation of a convolution; empty for a linear layer.
    """

    form: ClassVar[str] = "low_rank"
    down: Tensor
    up: Tensor

    def __init__(
        self, inner: Node, down: Tensor, up: Tensor, geometry: Mapping[str, Sequence[int]]
    ) -> None:
        super().__init__(inner)
        if down.shape[1:] != inner.weight_shape[1:] or up.shape != (
            inner.weight_shape[0],
            down.shape[0],
        ):
            raise ValueError(
                f"a branch of {tuple(down.shape)} and {tuple(up.shape)} does not fit a weight of "
                f"{inner.weight_shape}"
            )
        self.register_buffer("down", for_kernels(down))
        self.register_buffer("up", up.detach().t().clone(memory_format=torch.contiguous_format).t())
        self._calls, self._branch = CallCache(), Branch(self.down, self.up)
        self.geometry = {name: tuple(int(v) for v in pair) for name, pair in geometry.items()}

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        y = self._in_one_call(x, step if self.inner.entries else 0)
        if y is not None:
            return y
        y = self.below(self.inner, x, step)
        if self.down.dim() == 2:
            return y + F.linear(F.linear(x, self.down), self.up)
        stride, padding, dilation = (self.geometry[name] for name in _GEOMETRY)
        inner = F.conv2d(x, self.down, None, stride, padding, dilation)
        return y + F.conv2d(inner, self.up[:, :, None, None])

    def _in_one_call(self, x: Tensor, step: int) -> Tensor | None:
        """The output with the branch from one native call; None where there is no such call."""
        if torch.compiler.is_compiling():  # which sees the operator of the inner layer
            return None
        inner, branch = self.inner, self._for_kernels()
        if branch is None:
            return None
        if isinstance(inner, RowScaledLayer):
            return inner.in_one_call(x, step, branch)
        if isinstance(inner, GroupedLayer):
            return inner.call(branch)(x, step, last=inner.writes_last)
        if type(inner) is not PackedLayer or inner.library.run_groups is None:
            return None
        if inner.metadata["groups"] > 1:
            return None
        call = self._calls.get((inner.panels, branch), lambda: _with_branch(inner, branch))
        return call(x, step, last=inner.writes_last)

    def _for_kernels(self) -> Branch | None:
        """The branch, where memory is as the kernels need it."""
        if not is_for_kernels(self.down) or not self.up.t().is_contiguous():
            return None
        if self._branch.down is not self.down or self._branch.up is not self.up:
            self._branch = Branch(self.down, self.up)
        return self._branch

    def _apply(self, fn: Any, recurse: bool = True) -> "LowRankLayer":
        """Images become channels_last, but the branch stays as the kernels read it."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.down = for_kernels(self.down)
        return self

    def describe(self) -> Document:
        """See ``Node``."""
        pairs = {name: list(pair) for name, pair in self.geometry.items()}
        return {**super().describe(), "geometry": pairs}

    @classmethod
    def rebuild(cls, document: Mapping[str, Any], tensors: Tensors, build: Build) -> "LowRankLayer":
        """See ``Node``."""
        inner = build(document["inner"], take(tensors, "inner."))
        return cls(inner, tensors.pop("down"), tensors.pop("up"), document["geometry"])


def _with_branch(leaf: PackedLayer, branch: Branch) -> GroupCall:
    """The call of a packed layer with a branch: a layer of one group."""
    groups = Groups(
        torch.tensor([0, leaf.in_channels], dtype=torch.int32),
        act_scale=leaf.act_scale.reshape(-1, 1),
        act_zero=leaf.act_zero.reshape(-1, 1),
    )
    buffers = dict(leaf.named_buffers())
    del buffers["act_scale"], buffers["act_zero"]
    return GroupCall(leaf.library, leaf.metadata, leaf.uses_pairs, buffers, groups, branch=branch)


class OffsetLayer(Wrapper):
    """Takes an offset off each input channel, and adds what the weight makes of it.

    Attributes:
        offset: (K,).
        added: (O,).
    """

    form: ClassVar[str] = "offset"
    offset: Tensor
    added: Tensor

    def __init__(self, inner: Node, offset: Tensor, added: Tensor) -> None:
        super().__init__(inner)
        if (*added.shape, *offset.shape) != tuple(inner.weight_shape[:2]):
            raise ValueError(
                f"offsets of {tuple(offset.shape)} and {tuple(added.shape)} do not fit a weight of "
                f"{inner.weight_shape}"
            )
        spatial = [1] * (len(inner.weight_shape) - 2)
        self.register_buffer("offset", offset.detach().clone())
        self.register_buffer("added", added.detach().clone())
        self._shape = (-1, *spatial)

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        y = self.below(self.inner, x - self.offset.reshape(self._shape), step)
        return y + self.added.reshape(self._shape)

    @classmethod
    def rebuild(cls, document: Mapping[str, Any], tensors: Tensors, build: Build) -> "OffsetLayer":
        """See ``Node``."""
        inner = build(document["inner"], take(tensors, "inner."))
        return cls(inner, tensors.pop("offset"), tensors.pop("added"))


_GEOMETRY = ("stride", "padding", "dilation")


class Conv1dLayer(Wrapper):
    """A 1-d convolution on the kernels for images, of height 1."""

    form: ClassVar[str] = "conv1d"

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``; (batch, in, length)."""
        return self.below(self.inner, x.unsqueeze(2), step).squeeze(2)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(O, K / groups, length of the kernel)."""
        out, inputs, _, length = self.inner.weight_shape
        return (out, inputs, length)

    @classmethod
    def rebuild(cls, document: Mapping[str, Any], tensors: Tensors, build: Build) -> "Conv1dLayer":
        """See ``Node``."""
        return cls(build(document["inner"], take(tensors, "inner.")))


class PointwiseLayer(Wrapper):
    """A 1x1 convolution as a linear layer over its pixels, which can have ranges of their own.

    Attributes:
        stride: in both directions.
    """

    form: ClassVar[str] = "pointwise"

    def __init__(self, inner: Node, stride: Sequence[int]) -> None:
        super().__init__(inner)
        self.stride = (int(stride[0]), int(stride[1]))

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        pixels = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        y = self.below(self.inner, pixels, step).permute(0, 3, 1, 2)
        last = like_input(y, x)
        return last if last is not y else y.contiguous()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(O, K, 1, 1)."""
        return (*self.inner.weight_shape, 1, 1)

    def describe(self) -> Document:
        """See ``Node``."""
        return {**super().describe(), "stride": list(self.stride)}

    @classmethod
    def rebuild(
        cls, document: Mapping[str, Any], tensors: Tensors, build: Build
    ) -> "PointwiseLayer":
        """See ``Node``."""
        return cls(build(document["inner"], take(tensors, "inner.")), document["stride"])
