"""Calls of the native kernels for a layer whose K axis has groups, or that has a float branch."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.call import KernelCall, require_layout
from quantarena.methods.core.kernels.geometry import Geometry, layer_struct
from quantarena.methods.core.kernels.observer import Kind, NativeOperation, here

SPARE = 7
"""Floats behind a branch's ``down`` that the kernels may read."""


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The groups of a layer's K axis.

    Attributes:
        edge: int32 (G + 1,), first channel of each group, in the order of the weights.
        order: int16 (K,) with the bits of a uint16, the channel of the input that each channel of
            the weights is; None where they are in order.
        act_scale: float32 (S, G), of sampler calls and groups; None where rows have ranges.
        act_zero: int32 (S, G), likewise.
        weight_scale: float32 (G, O); None where the layer has those.
        ranges: see ``native.BY_CALL`` and the others.
        apart: groups have panels of their own, as groups of a convolution.
    """

    edge: Tensor
    order: Tensor | None = None
    act_scale: Tensor | None = None
    act_zero: Tensor | None = None
    weight_scale: Tensor | None = None
    ranges: int = native.BY_CALL
    apart: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A product of small rank in float32, added to a layer's output.

    Attributes:
        down: as :func:`for_kernels` lays it out.
        up: (O, r), outputs side by side in memory.
    """

    down: Tensor
    up: Tensor


def for_kernels(down: Tensor) -> Tensor:
    """The first factor of a branch as the kernels read it: columns of a channel side by side.

    Args:
        down: (r, K) or (r, K, kh, kw).

    Returns:
        The same values in the same shape; memory is (kh, kw, K, r), with ``SPARE`` floats behind.
    """
    places = list(range(2, down.dim()))
    values = down.detach().permute(*places, 1, 0)
    room = torch.zeros(down.numel() + SPARE, dtype=down.dtype, device=down.device)
    room[: down.numel()] = values.reshape(-1)
    laid = room[: down.numel()].view(values.shape)
    count = down.dim()
    return laid.permute(count - 1, count - 2, *range(count - 2))


def is_for_kernels(down: Tensor) -> bool:
    """Whether memory is as :func:`for_kernels` makes it."""
    inner = down.permute(*range(2, down.dim()), 1, 0)
    room = down.untyped_storage().nbytes() // 4 - down.storage_offset()
    fits = room >= down.numel() + SPARE
    return bool(fits and inner.is_contiguous() and down.dtype is torch.float32 and down.is_cpu)


class GroupCall(KernelCall):
    """Calls the kernels for one layer, whose buffers it keeps alive.

    Shape and kind in its metadata are those of inputs and outputs.
    """

    def __init__(
        self,
        library: native.Library,
        metadata: dict[str, Any],
        pair: bool,
        buffers: Mapping[str, Tensor],
        groups: Groups,
        *,
        panels: dict[str, Any] | None = None,
        branch: Branch | None = None,
    ) -> None:
        """Builds the structures.

        Args:
            library: the native library.
            metadata: see the attribute.
            pair: form of the panels, see ``Chunks.pair``.
            buffers: buffers of the layer by name.
            groups: groups of K.
            panels: description of the layer that the panels are of, where it is another.
            branch: float branch, or None.
        """
        table = groups.act_scale if groups.act_scale is not None else torch.ones(1, 1)
        entries = table.shape[0] if groups.ranges == native.BY_CALL else 1
        super().__init__(library, metadata, entries)
        self._count = len(groups.edge) - 1
        self._kept: tuple[Any, ...] = (dict(buffers), groups, branch, table)
        named = {"act_scale": table, **buffers}
        self._layer = layer_struct(panels or metadata, pair, named, sums=groups.apart)
        rank = 0 if branch is None else branch.up.shape[1]
        self._struct = native.GroupsStruct(
            self._count,
            groups.ranges,
            rank,
            entries,
            *map(
                _address,
                (
                    groups.edge,
                    groups.order,
                    groups.act_scale,
                    groups.act_zero,
                    groups.weight_scale,
                    branch.down if branch is not None and rank else None,
                    branch.up if branch is not None and rank else None,
                ),
            ),
        )
        self._addresses = ctypes.addressof(self._layer), ctypes.addressof(self._struct)
        self._both = native.GroupedLayerStruct(*self._addresses)

    def release(self) -> None:
        """Lets go of the buffers: whoever calls it keeps them alive."""
        self._kept = ()

    def __call__(
        self,
        x: Tensor,
        step: int,
        into: Tensor | None = None,
        flags: int = 0,
        *,
        last: bool = False,
        rows: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Computes the layer's output.

        Args:
            x: float32 input on the CPU.
            step: entry of the activation tables.
            into: tensor to write to, in the output's layout; by default a new one.
            flags: ``native.ACCUMULATE`` adds to ``into``, ``native.INTEGER`` writes the integers of
                each group.
            last: write images in channels_last whatever the input's format.
            rows: scales (R, G) float32 and zero points (R, G) int32, contiguous, with ``BY_ROW``.

        Returns:
            The output; with ``native.INTEGER`` int32 (G, ...), G outputs.

        Raises:
            ValueError: wrong type, device, shape or layout, or NaN or infinity where ranges are
                found.
            IndexError: the tables have no such entry.
            MemoryError: there is no memory for intermediate results.
        """
        geometry = self._geometry(x, step, last)
        if geometry.struct is None:
            return self(torch.empty(x.shape).copy_(x), step, into, flags, last=last, rows=rows)
        if geometry.copied:
            x = x.contiguous(memory_format=torch.channels_last)
        if into is None:
            into = self._output(geometry, flags)
        else:
            require_layout(into, geometry)
        ranges = None if rows is None else native.RowScalesStruct(*map(_address, rows))
        assert self.library.run_groups is not None
        error = self.library.run_groups(
            *self._addresses,
            geometry.address,
            x.data_ptr(),
            into.data_ptr(),
            step,
            torch.get_num_threads(),
            flags,
            None if ranges is None else ctypes.addressof(ranges),
        )
        self._require_success(error)
        if here.tell is not None:
            here.tell(
                NativeOperation(
                    Kind.GROUPS,
                    self.library.run_groups,
                    (x, into, *(rows or ())),
                    self._both,
                    geometry.struct,
                    flags=flags,
                    entry=step,
                    tables=self.entries > 1,
                    keep=(self, geometry),
                )
            )
        return into

    def _output(self, geometry: Geometry, flags: int) -> Tensor:
        if not flags & native.INTEGER:
            return torch.empty_strided(geometry.shape, geometry.strides)
        count, size = self._count, torch.Size(geometry.shape).numel()
        shape, strides = (count, *geometry.shape), (size, *geometry.strides)
        return torch.empty_strided(shape, strides, dtype=torch.int32)

    def _plan(self, x: Tensor, last: bool) -> Geometry:
        """The geometry of an input; channels side by side, in a copy where they are not."""
        found = super()._plan(x, last)
        if found.struct is None or found.struct.x_channel == 1:
            return found
        struct = native.GeometryStruct.from_buffer_copy(found.struct)
        _, channels, height, width = x.shape
        struct.x_batch, struct.x_row = height * width * channels, width * channels
        struct.x_pixel, struct.x_channel = channels, 1
        return Geometry(struct, ctypes.addressof(struct), found.shape, found.strides, copied=True)


class CallCache:
    """The last call that was made, while what it was made of is the same; copies hold none."""

    def __init__(self) -> None:
        self._made: tuple[tuple[Any, ...], GroupCall] | None = None

    def get(self, of: tuple[Any, ...], make: Callable[[], GroupCall]) -> GroupCall:
        """The call for these objects, which are compared by identity."""
        if self._made is None or any(a is not b for a, b in zip(self._made[0], of, strict=True)):
            self._made = of, make()
        return self._made[1]

    def __reduce__(self) -> tuple[type["CallCache"], tuple[()]]:
        """Another process, or another layer, cannot use the addresses of a call."""
        return CallCache, ()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
