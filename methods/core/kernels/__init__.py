"""Packed low-bit CPU kernels: formats, the integer oracle, and the native library."""

from quantarena.methods.core.kernels.native import NativeStatus, status

__all__ = ["NativeStatus", "status"]
