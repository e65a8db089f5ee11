"""Corrections of a quantized network's prediction, and of what a sampler makes of it."""
