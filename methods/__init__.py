"""Quantization methods: one plug-in for each paper, built on shared core and techniques."""
