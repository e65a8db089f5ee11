"""Layers whose K axis has groups: their panels and their calls of the native kernels."""
