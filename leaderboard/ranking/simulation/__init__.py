"""Simulated voters, and how fast each engine finds their contestants' order."""
