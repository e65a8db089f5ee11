"""Fidelity metrics: how close a cell comes to full precision with the same seeds."""
