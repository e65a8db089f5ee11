"""Reads a network by running it once: operations, layers and their roles, attention, blocks."""
