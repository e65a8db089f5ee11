"""Exporting a quantized model as a pipeline folder, and drawing images with it."""
