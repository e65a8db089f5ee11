"""Packed low-bit kernels: formats, the integer oracle and the native library."""

from quantarena.methods.core.kernels.native import Status, status

__all__ = ["Status", "status"]
