"""Packed low-bit kernels: formats, integer oracle and the native library."""

from quantarena.methods.core.kernels.formats import IntegerLayer, pack_codes, unpack_codes
from quantarena.methods.core.kernels.native import Status, status

__all__ = ["IntegerLayer", "Status", "pack_codes", "status", "unpack_codes"]
