"""Quantized layers, attention products and the network that holds them."""
