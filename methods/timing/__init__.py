"""Benchmarks of the kernels; no result of a method depends on them."""
