"""The room bench/ship."""
