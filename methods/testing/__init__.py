"""Conformance tests for methods, and the small networks that they run on."""
