"""The room bench/report."""
