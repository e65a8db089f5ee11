"""Recordings of what a sampler feeds a network, and calibration points drawn from them."""
