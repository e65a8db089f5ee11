"""Tests and intervals of paired differences, as pure functions of arrays, and how work is spread."""
