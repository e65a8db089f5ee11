"""Packed networks in other runtimes, from our own codes and scales."""
