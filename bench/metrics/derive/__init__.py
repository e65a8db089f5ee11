"""The room bench/metrics/derive."""
