"""The room bench/plan."""
