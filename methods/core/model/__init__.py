"""The quantized model: simulated layers and attention, and policies of bit-widths."""
