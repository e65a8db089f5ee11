"""The room methods/core/quantizers."""
