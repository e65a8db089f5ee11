"""The room methods/core/record."""
