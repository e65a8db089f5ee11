"""Normalizations and activations between packed layers, in one pass over memory each.

Plain float32 arithmetic, equal to torch's up to rounding. They are native because they dominate the
time of a network whose integer products are fast.
"""

import ctypes
from enum import IntEnum

import torch
from torch import Tensor

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.observer import Kind, NativeOperation, here
from quantarena.methods.core.rotation import factors, hartley, rotate


class Activation(IntEnum):
    """``QaActivation`` in ``csrc/quantarena.h``."""

    PLAIN = 0
    SILU = 1
    GELU = 2
    GELU_TANH = 3


def normalize(
    library: native.Library,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: Activation = Activation.PLAIN,
) -> Tensor | None:
    """Group normalization of (N, C, ...), followed by an activation.

    Args:
        library: library with native kernels.
        x: float32 input on the CPU.
        groups: number of groups, which divides C.
        weight: (C,) float32 or None.
        bias: (C,) float32 or None.
        eps: value added to the variance.
        activation: activation of the result.

    Returns:
        Dense output in the memory format of ``x``; None where the kernel cannot take this input.
    """
    if x.dim() < 2 or not _takes(x, weight, bias) or x.shape[1] % groups:
        return None
    last = (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    if not last:
        x = x.contiguous()
    batch, channels = x.shape[:2]
    pixels = x.numel() // max(1, batch * channels)
    struct = native.NormStruct(
        batch,
        channels,
        pixels,
        groups,
        last,
        activation,
        eps,
        None if weight is None else weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
    )
    y = torch.empty_like(x)
    assert library.norm is not None
    error = library.norm(ctypes.byref(struct), x.data_ptr(), y.data_ptr(), torch.get_num_threads())
    if error == native.NO_MEMORY:
        raise MemoryError("normalization: no memory for scratch")
    if here.tell is not None:
        fixed = (weight, bias)
        here.tell(NativeOperation(Kind.NORM, library.norm, (x, y), struct, fixed=fixed))
    return y


def activate(
    library: native.Library, x: Tensor, activation: Activation, gate: Tensor | None = None
) -> Tensor | None:
    """Computes ``activation(x)``, multiplied by ``gate`` where one is given.

    Args:
        library: library with native kernels.
        x: float32 input on the CPU; its rows may have a pitch, as those of a chunk do.
        activation: the activation.
        gate: factor in the shape of ``x``.

    Returns:
        Contiguous output; None where the kernel cannot take this input.
    """
    if activation is Activation.PLAIN or not _takes(x) or x.dim() == 0:
        return None
    pitch = row_pitch(x)
    gate_pitch = 0 if gate is None else row_pitch(gate)
    if pitch is None or gate_pitch is None:
        return None
    if gate is not None and (gate.shape != x.shape or not _takes(gate)):
        return None
    columns = x.shape[-1]
    y = torch.empty(x.shape)
    rows = x.numel() // max(1, columns)
    if pitch == columns and gate_pitch in (0, columns):  # one long run, cut for several threads
        rows, columns = _cut(rows, columns)
        pitch = columns
        gate_pitch = columns if gate is not None else 0
    struct = native.RowsStruct(rows, columns, pitch, gate_pitch, activation)
    assert library.activation is not None
    library.activation(
        ctypes.byref(struct),
        x.data_ptr(),
        None if gate is None else gate.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    if here.tell is not None:
        here.tell(NativeOperation(Kind.ACTIVATION, library.activation, (x, gate, y), struct))
    return y


def extremes(library: native.Library, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every run of ``width`` elements.

    Args:
        library: library with native kernels.
        x: (..., n * width) float32 on the CPU.
        width: length of a run, at least 1.

    Returns:
        Smallest and largest values, (..., n) each; not finite where a run holds NaN or infinity.
    """
    if not x.is_cpu:
        raise ValueError(f"runs are looked through on the CPU, got a tensor on {x.device}")
    x = x.contiguous()
    low = torch.empty(*x.shape[:-1], x.shape[-1] // width)
    high = torch.empty_like(low)
    assert library.extremes is not None
    library.extremes(
        x.data_ptr(), low.data_ptr(), high.data_ptr(), low.numel(), width, torch.get_num_threads()
    )
    if here.tell is not None:
        sizes = (ctypes.c_int64 * 2)(low.numel(), width)
        here.tell(NativeOperation(Kind.EXTREMES, library.extremes, (x, low, high), sizes))
    return low, high


def rotated(library: native.Library, x: Tensor, factor: Tensor) -> Tensor:
    """``rotate(x * factor)`` of ``core.rotation``, in one pass where the kernel can take the input.

    Args:
        library: library with native kernels, or without.
        x: (..., K).
        factor: (K,).

    Returns:
        (..., K), the same bits from the kernel as from torch.

    Raises:
        MemoryError: no memory for scratch.
    """
    if library.rotate is None or not _takes(x, factor) or x.shape[-1:] != factor.shape:
        return rotate(x * factor)
    x, (order, size) = x.contiguous(), factors(len(factor))
    y, table = torch.empty_like(x), hartley(order).contiguous()
    struct = native.RotationStruct(
        x.numel() // len(factor), order, size, factor.data_ptr(), table.data_ptr()
    )
    error = library.rotate(
        ctypes.byref(struct), x.data_ptr(), y.data_ptr(), torch.get_num_threads()
    )
    if error == native.NO_MEMORY:
        raise MemoryError("rotation: no memory for scratch")
    if here.tell is not None:
        fixed = (factor, table)
        here.tell(NativeOperation(Kind.ROTATION, library.rotate, (x, y), struct, fixed=fixed))
    return y


def row_pitch(x: Tensor) -> int | None:
    """Distance between rows in elements, where all rows of ``x`` have the same; else None."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        return None
    rows, pitch = 1, int(x.shape[-1])
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if rows == 1:
            pitch = stride
        elif stride != rows * pitch:
            return None
        rows *= size
    return pitch


def _cut(rows: int, columns: int) -> tuple[int, int]:
    """The same elements in rows that are long enough to be worth a call each."""
    while columns < 4096 and rows % 2 == 0:
        rows, columns = rows // 2, columns * 2
    return rows, columns


def _takes(x: Tensor, *parameters: Tensor | None) -> bool:
    if (
        x.dtype is not torch.float32
        or not x.is_cpu
        or (x.requires_grad and torch.is_grad_enabled())
    ):
        return False
    return all(
        p is None or (p.dtype is torch.float32 and p.is_cpu and p.is_contiguous())
        for p in parameters
    )
