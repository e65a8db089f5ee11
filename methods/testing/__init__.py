"""Conformance tests for methods, the small networks that they run on, and a pretended GPU."""
