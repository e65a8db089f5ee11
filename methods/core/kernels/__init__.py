"""Packed low-bit kernels: formats, integer oracle, native library, packed modules."""

from quantarena.methods.core.kernels.formats import IntegerLayer, pack_codes, unpack_codes
from quantarena.methods.core.kernels.native import Status, status
from quantarena.methods.core.kernels.packed import PackedLayer
from quantarena.methods.core.kernels.split import SplitPackedLayer

__all__ = [
    "IntegerLayer",
    "PackedLayer",
    "SplitPackedLayer",
    "Status",
    "pack_codes",
    "status",
    "unpack_codes",
]
