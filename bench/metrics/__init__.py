"""Measurements of images: to full precision (same seed) and to real images."""
