"""The room methods/core/trace."""
