"""Stores that several processes share: leases on work, notes of drivers, outlines of rows, URLs."""
