"""The harness: it plans and runs cells, keeps their results, and exports quantized models."""
