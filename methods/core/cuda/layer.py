"""A quantized layer on the CUDA kernels."""

from dataclasses import MISSING, fields
from math import prod
from typing import Any

import torch
import triton
from torch import Tensor

from quantarena.methods.core.cuda import gemm, packing
from quantarena.methods.core.cuda.device import arch
from quantarena.methods.core.cuda.problem import Problem, problem
from quantarena.methods.core.cuda.quantize import quantize, quantize_kernel
from quantarena.methods.core.cuda.tuning import HOPPER, Config, choose
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.formats import IntegerLayer, pack_codes
from quantarena.methods.core.packed.nodes.leaf import PackedLayer

INTERPRETED = not isinstance(quantize_kernel, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels, on the CPU (TRITON_INTERPRET=1)."""
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_CANONICAL = ("weight_scale", "weight_zero", "act_scale", "act_zero", "in_mult", "bias")
_UNDERSTOOD = {
    "kind",
    "weight_codes",
    "weight_bits",
    "act_bits",
    "stride",
    "padding",
    "dilation",
    "groups",
    *_CANONICAL,
}
_MAX_PROBLEMS = 64


class CudaPackedLayer(PackedLayer):
    """A packed layer that runs on a GPU.

    It replaces the native leaf in any tree of packed modules, with the same description and the
    same canonical ``state_dict``. It takes float32, bfloat16 and float16; outputs have the type and
    memory format of the input. Buffers move with ``.to(device)`` and keep their types.

    Attributes:
        config: tile sizes of all calls; None chooses them by shape.

    Example:
        >>> module = CudaPackedLayer(integer_layer).to("cuda")     # doctest: +SKIP
        >>> y = module(x.bfloat16())                               # doctest: +SKIP
    """

    takes = _TYPES
    weights: Tensor
    act_inverse: Tensor
    entry_index: Tensor

    def __init__(self, layer: IntegerLayer, config: Config | None = None) -> None:
        """Packs a layer.

        Args:
            layer: the layer.
            config: tile sizes of all calls; by default chosen by shape.

        Raises:
            Unsupported: the layer uses a field that these kernels do not read.
        """
        super().__init__(layer, native.load("reference"))  # nothing native to run
        self.config = config

    # ---- packing ---------------------------------------------------------------------------

    def _pack(self, layer: IntegerLayer, pair: bool | None = None) -> None:
        _check(layer)
        device = self.weights.device if "weights" in self._buffers else torch.device("cpu")
        self.metadata = layer.metadata()
        self.entries = layer.act_scale.numel() if layer.act_scale.dim() else 0
        self._pair = False
        self._problems: dict[tuple[Any, ...], Problem] = {}
        codes = packing.depth_major(layer.weight_codes)
        buffers = {
            "weights": packing.pack_rows(codes, layer.weight_bits),
            "weight_sum": codes.sum(dim=1, dtype=torch.int32),
            "act_inverse": torch.ones((), dtype=torch.float32) / layer.act_scale,
            "entry_index": torch.arange(layer.steps, dtype=torch.int32),
            **{name: getattr(layer, name) for name in _CANONICAL},
        }
        if not layer.weight_zero.any():
            buffers["weight_zero"] = None  # symmetric: nothing to store, no sums to correct
        for name, tensor in buffers.items():
            self.register_buffer(name, None if tensor is None else tensor.to(device))
        self._forget()

    def integer_layer(self) -> IntegerLayer:
        """The layer on the CPU, read back from the packed rows."""
        shape, bits = self.weight_shape, self.metadata["weight_bits"]
        rows = packing.unpack_rows(self.weights.cpu(), bits, prod(shape[1:]))
        tensors = {"codes": pack_codes(packing.weight_shaped(rows, shape), bits)}
        tensors["weight_zero"] = torch.zeros(shape[0], dtype=torch.int32)
        canonical = {name: getattr(self, name) for name in _CANONICAL}
        tensors |= {name: value.cpu() for name, value in canonical.items() if value is not None}
        return IntegerLayer.from_tensors(self.metadata, tensors)

    # ---- running ---------------------------------------------------------------------------

    def _run(self, x: Tensor, step: int, into: Tensor | None, flags: int) -> Tensor:
        if not 0 <= step < self.entry_index.numel():
            raise IndexError(f"step {step} is not in the table of {self.entry_index.numel()}")
        self._check_place(x)
        flat = x.detach()
        if self.metadata["kind"] == "linear" and x.shape[-1:] == self.weight_shape[1:]:
            flat = flat.reshape(-1, x.shape[-1])
        call = self._problem(flat)
        shape = call.out_shape
        if self.metadata["kind"] == "linear":
            shape = (*x.shape[:-1], shape[1])
        if into is None:
            kind = torch.int32 if flags & native.INTEGER else x.dtype
            y = torch.empty_strided(call.out_shape, call.out_strides, dtype=kind, device=x.device)
            into = y.view(shape) if self.metadata["kind"] == "linear" else y
        elif into.shape != shape or into.device != x.device or not _takes(into, call):
            raise ValueError(
                f"cannot add an output of shape {shape} to {tuple(into.shape)} with strides "
                f"{into.stride()}, {into.dtype} on {into.device}"
            )
        self._launch(flat, step, into, flags, call)
        return into

    def _launch(self, x: Tensor, step: int, into: Tensor, flags: int, call: Problem) -> None:
        buffers = {name: value for name, value in self._buffers.items() if value is not None}
        bits, act_bits = self.metadata["weight_bits"], self.metadata["act_bits"]
        entry = self.entry_index[step : step + 1]
        mode = gemm.FLOAT
        if flags:
            mode = gemm.INTEGER if flags & native.INTEGER else gemm.ADD
        # Triton launches on the current device; its interpreter launches nothing
        with torch.cuda.device(-1 if INTERPRETED else x.device.index):
            codes, sums = quantize(
                x, call, buffers, entry, act_bits, sums=self.weight_zero is not None
            )
            gemm.multiply(
                codes,
                sums,
                into,
                call,
                buffers,
                entry,
                weight_bits=bits,
                act_bits=act_bits,
                mode=mode,
                config=self.config
                or choose(
                    call.rows,
                    call.columns,
                    call.depth,
                    bits,
                    HOPPER if INTERPRETED else arch(x.device),
                ),
            )

    def _check_place(self, x: Tensor) -> None:
        if x.dtype not in _TYPES:
            raise ValueError(f"CUDA layers take float32, bfloat16 or float16, got {x.dtype}")
        if not x.is_cuda and not (INTERPRETED and x.is_cpu):
            raise ValueError(
                f"CUDA layers take CUDA tensors, got one on {x.device}; set TRITON_INTERPRET=1 "
                "before Triton is imported to check them on the CPU"
            )
        if x.device != self.weights.device:
            raise ValueError(
                f"the input is on {x.device}, the layer on {self.weights.device}: move one of them"
            )

    def _problem(self, x: Tensor) -> Problem:
        key = (x.shape, x.stride())
        known = self._problems.get(key)
        if known is None:
            if len(self._problems) >= _MAX_PROBLEMS:
                self._problems.clear()
            known = self._problems[key] = problem(self.metadata, x)
        return known

    # ---- accounting ------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """``packed`` on a GPU, ``reference`` under the interpreter: its times mean nothing."""
        return "reference" if INTERPRETED else "packed"

    @property
    def weight_bits_observed(self) -> float:
        """Bits per weight code, measured from the size of the packed rows."""
        bits = self.metadata["weight_bits"]
        depth = prod(self.weight_shape[1:])
        slots = packing.segments(bits) * packing.segment_length(depth, bits)
        return self.weights.shape[1] * 8 / slots

    # ---- state -----------------------------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> "CudaPackedLayer":
        """Moves buffers without changing their types."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                moved = fn(buffer)
                same = moved.dtype == buffer.dtype
                self._buffers[name] = moved if same else buffer.to(moved.device)
        return self


def _takes(y: Tensor, call: Problem) -> bool:
    """Whether outputs can be added to ``y``, a float tensor in the output's layout."""
    same = y.is_contiguous() if len(call.out_shape) == 2 else y.stride() == call.out_strides
    return same and y.dtype in _TYPES


def _check(layer: IntegerLayer) -> None:
    """Raises Unsupported where a layer uses a field that these kernels do not read."""
    for field in fields(layer):
        value = getattr(layer, field.name)
        default = None if field.default is MISSING else field.default
        if field.name not in _UNDERSTOOD and value is not default:
            raise Unsupported(f"the CUDA kernels do not take layers with {field.name}")
