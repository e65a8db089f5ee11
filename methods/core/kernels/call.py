"""Calls of the native kernels for one layer: its C structure, and a geometry per kind of input."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.geometry import Geometry, layer_struct, plan
from quantarena.methods.core.kernels.observer import Kind, NativeOperation, here

_MAX_GEOMETRIES = 64


class KernelCall:
    """What calls of any layer share: geometries of inputs, checks, the library's errors.

    Attributes:
        library: the native library.
        metadata: description of the layer, see ``IntegerLayer.metadata``.
        entries: entries of the activation tables.
    """

    def __init__(self, library: native.Library, metadata: dict[str, Any], entries: int) -> None:
        self.library, self.metadata, self.entries = library, metadata, entries
        self._geometries: dict[tuple[Any, ...], Geometry] = {}

    def _geometry(self, x: Tensor, step: int, last: bool) -> Geometry:
        """The geometry of an input, planned once for all inputs of its shape and strides."""
        if x.dtype is not torch.float32 or not x.is_cpu:
            raise ValueError(f"packed layers take float32 on the CPU, got {x.dtype} on {x.device}")
        if not 0 <= step < self.entries:
            raise IndexError(f"step {step} is not in the table of {self.entries}")
        key = (x.shape, x.stride(), last)
        geometry = self._geometries.get(key)
        if geometry is None:
            geometry = self._plan(x, last)
            if len(self._geometries) >= _MAX_GEOMETRIES:
                self._geometries = {}
            self._geometries[key] = geometry
        return geometry

    def _plan(self, x: Tensor, last: bool) -> Geometry:
        return plan(self.metadata, x, last=last)

    def _require_success(self, error: int) -> None:
        """Raises what an error of the library stands for."""
        if error == native.NO_MEMORY:
            raise MemoryError("packed layer: no memory for scratch")
        if error == native.NOT_FINITE:
            raise ValueError("cannot quantize: the tensor holds NaN or infinity")
        if error:
            raise ValueError(f"the {self.library.status.isa} kernels cannot run this layer's form")


def require_layout(into: Tensor, geometry: Geometry) -> None:
    """Raises ValueError unless a tensor is float32 in the layout of the output."""
    wanted = (geometry.shape, geometry.strides, torch.float32)
    if (into.shape, into.stride(), into.dtype) != wanted:
        raise ValueError(f"cannot add to a {into.dtype} tensor of strides {into.stride()}")


class NativeCall(KernelCall):
    """Calls the kernels for one layer, whose buffers it keeps alive.

    Attributes:
        pair: form of the panels, see ``Chunks.pair``.
        buffers: buffers of the layer by name; of a layer made of others, only its own ones.
        parts: calls of the layers that it is made of.
        address: address of the C structure.
    """

    def __init__(
        self,
        library: native.Library,
        metadata: dict[str, Any],
        pair: bool,
        buffers: Mapping[str, Tensor],
        parts: Sequence["NativeCall"] = (),
    ) -> None:
        super().__init__(library, metadata, buffers["act_scale"].numel())
        self.pair, self.buffers, self.parts = pair, dict(buffers), tuple(parts)
        self.address: int
        self._addresses = (ctypes.c_void_p * len(parts))(*[part.address for part in parts])
        self._struct = layer_struct(metadata, pair, self.buffers, parts=self._addresses)
        self.address = ctypes.addressof(self._struct)

    def __call__(
        self,
        x: Tensor,
        step: int,
        into: Tensor | None = None,
        flags: int = 0,
        *,
        last: bool = False,
    ) -> Tensor:
        """Computes the layer's output.

        Args:
            x: float32 input on the CPU.
            step: entry of the activation tables.
            into: tensor to write to, in the output's layout; by default a new one.
            flags: ``native.ACCUMULATE`` adds to ``into``, ``native.INTEGER`` writes integers.
            last: write images in channels_last whatever the input's format.

        Raises:
            ValueError: wrong type, device, shape or layout, or panels of a form that the kernels
                have not.
            IndexError: the tables have no such entry.
            MemoryError: there is no memory for intermediate results.
        """
        geometry = self._geometry(x, step, last)
        if geometry.struct is None:  # neither pixels nor channels are contiguous
            # not x.contiguous(), which returns an empty tensor as it is, whatever its strides
            return self(torch.empty(x.shape).copy_(x), step, into, flags, last=last)
        if into is None:
            dtype = torch.int32 if flags & native.INTEGER else torch.float32
            into = torch.empty_strided(geometry.shape, geometry.strides, dtype=dtype)
        else:
            require_layout(into, geometry)
        assert self.library.run is not None
        error = self.library.run(
            self.address,
            geometry.address,
            x.data_ptr(),
            into.data_ptr(),
            step,
            torch.get_num_threads(),
            flags,
            None,
        )
        self._require_success(error)
        if here.tell is not None:
            here.tell(self._told(x, into, geometry, step, flags))
        return into

    def _told(
        self, x: Tensor, into: Tensor, geometry: Geometry, step: int, flags: int
    ) -> NativeOperation:
        return NativeOperation(
            Kind.LAYER,
            self.library.run,
            (x, into),
            self._struct,
            geometry.struct,
            flags=flags,
            entry=step,
            tables=self.entries > 1,
            keep=(self, geometry),
        )
