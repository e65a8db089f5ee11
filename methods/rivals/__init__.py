"""Rivals: other libraries' quantization, and full precision in other settings. One file each."""
