"""Quantization methods: one plug-in a paper, on one shared core."""
