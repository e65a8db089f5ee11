"""Runs on a Ray cluster: its nodes, the code that travels there, workers, timings alone."""
