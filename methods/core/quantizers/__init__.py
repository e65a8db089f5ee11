"""Quantizers of weights and activations, with ranges that may vary by group or sampler call."""
