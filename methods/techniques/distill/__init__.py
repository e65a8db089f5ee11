"""Distillation: the quantized network is trained end to end on full-precision predictions."""
