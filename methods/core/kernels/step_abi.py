"""Structures of recorded steps, mirrors of ``csrc/step/step.h``, and what takes them."""

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.build import LIBRARY_NAME

DIMS, INPUTS, CODES, OPERANDS = 6, 7, 16, 8
NOWHERE = -1
"""Slot of an operand that is not there."""
OF_CALL = -1
"""Table entry of an operation that reads that of the call."""

_i32, _i64, _f32, _ptr = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class PointOp(IntEnum):
    """``QaPointOp``: the first four take two values, the next five a value and a number."""

    ADD = 0
    SUB = 1
    MUL = 2
    DIV = 3
    ADD_NUMBER = 4
    MUL_NUMBER = 5
    DIV_NUMBER = 6
    NUMBER_SUB = 7
    NUMBER_DIV = 8
    NEGATE = 9
    EXP = 10
    SIN = 11
    COS = 12
    SILU = 13
    GELU = 14
    GELU_TANH = 15


class OperandStruct(ctypes.Structure):
    """Mirror of ``QaOperand``."""

    _fields_ = [("slot", _i32), ("reserved", _i32), ("offset", _i64)]


class OpStruct(ctypes.Structure):
    """Mirror of ``QaOp``."""

    _fields_ = [
        *[(name, _i32) for name in ("kind", "flags", "table", "reserved")],
        *[(name, _ptr) for name in ("function", "params", "more")],
        ("at", OperandStruct * OPERANDS),
    ]


class PointCodeStruct(ctypes.Structure):
    """Mirror of ``QaPointCode``."""

    _fields_ = [("op", _i32), ("a", _i32), ("b", _i32), ("value", _f32)]


class PointwiseStruct(ctypes.Structure):
    """Mirror of ``QaPointwise``."""

    _fields_ = [
        ("size", _i64 * DIMS),
        ("stride", (_i64 * DIMS) * (INPUTS + 1)),
        ("integer", _i32 * (INPUTS + 1)),
        ("inputs", _i32),
        ("count", _i32),
        ("code", PointCodeStruct * CODES),
    ]


class LayerNormStruct(ctypes.Structure):
    """Mirror of ``QaLayerNorm``."""

    _fields_ = [("rows", _i64), ("width", _i64), ("eps", _f32)]


class GatherStruct(ctypes.Structure):
    """Mirror of ``QaGather``."""

    _fields_ = [("rows", _i64), ("width", _i64), ("table", _i64)]


_PRODUCTS = (
    "samples heads queries keys width value_width y_sample y_head y_row q_sample q_head q_row "
    "k_sample k_head k_row v_sample v_head v_row mask_sample mask_head mask_row mask_key"
)


class ProductsStruct(ctypes.Structure):
    """Mirror of ``QaProducts``."""

    _fields_ = [*[(name, _i64) for name in _PRODUCTS.split(" ")], ("factor", _f32)]


@dataclass(frozen=True, slots=True)
class StepLibrary:
    """What runs recorded steps.

    Attributes:
        run: ``run(ops, count, slots, step, threads)``; 0, or 8 times the number of the operation
            that failed plus its error.
        timed: the same with one argument more, an array of int64 that gets the nanoseconds of each
            operation added.
        pointwise: address of the kernel, as of the following ones.
        layer_norm: the same.
        gather: the same.
        products: the same.
    """

    run: "ctypes._CFunctionType"
    timed: "ctypes._CFunctionType"
    pointwise: int
    layer_norm: int
    gather: int
    products: int


@cache
def step_library(isa: str) -> StepLibrary | None:
    """The kernels of recorded steps for an instruction set; None where there is no library.

    Args:
        isa: as ``native.NativeStatus`` says it.
    """
    if isa not in native.status().available:
        return None
    library = ctypes.CDLL(str(Path(__file__).resolve().parent / LIBRARY_NAME))
    library.qa_step_kernel.restype = _ptr
    arguments = (_ptr, _i32, _ptr, _i32, _i32)
    run = ctypes.CFUNCTYPE(_i32, *arguments)(("qa_run_plan", library))
    timed = ctypes.CFUNCTYPE(_i32, *arguments, _ptr)(("qa_time_plan", library))
    return StepLibrary(run, timed, *[library.qa_step_kernel(isa.encode(), i) for i in range(4)])
