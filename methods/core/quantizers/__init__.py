"""Quantizers of weights, activations and softmax outputs."""
