"""The room bench/metrics/quality."""
