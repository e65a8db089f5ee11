"""Lowering: from a quantized layer to the packed modules that compute it."""
