"""The gate: whether a quantized folder keeps limits that another project's CI sets."""
