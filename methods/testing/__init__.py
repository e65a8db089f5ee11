"""The room methods/testing."""
