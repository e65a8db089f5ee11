"""Calibration: ranges of activations from the values that calibration points produce."""
