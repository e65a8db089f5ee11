"""The unit in which presets count effort."""

PUBLISHED_ITERATIONS = 20_000
"""Iterations of the published AdaRound schedule; methods with another length scale to it."""
