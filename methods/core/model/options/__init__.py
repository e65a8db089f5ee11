"""Options of a quantized layer: one object in one file each."""
