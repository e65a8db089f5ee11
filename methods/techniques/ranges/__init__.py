"""The room methods/techniques/ranges."""
