"""The room methods/techniques/learn."""
