"""A packed network's step as a recorded list of native operations: docs/kernels.md."""
