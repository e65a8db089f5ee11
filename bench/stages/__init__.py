"""The work on one cell: record, quantize, pack, sample, score and time, each stage cached."""
