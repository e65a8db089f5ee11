"""Modules of a packed model, which run the integer kernels."""
