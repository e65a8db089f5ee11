"""The room methods/timing."""
