"""Tuning a network to new images while its weights stay packed codes."""
