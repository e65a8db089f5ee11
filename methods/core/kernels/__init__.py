"""Packed low-bit kernels: formats, integer oracle, native library, packed modules."""
