"""The room methods/core/packed."""
