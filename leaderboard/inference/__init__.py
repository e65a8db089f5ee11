"""Tests and intervals of paired differences, as pure functions of arrays; how work is spread."""
