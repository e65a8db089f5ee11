"""Networks on packed weights: lowering, packing, checkpoints, parity and footprint."""
