"""Tests and intervals of paired differences, as functions of arrays, and work on several cores."""
