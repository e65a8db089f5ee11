"""Packed models: lowering to integer layers, parity checks, footprint, and checkpoints."""
