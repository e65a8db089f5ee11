"""The room methods/core/model."""
