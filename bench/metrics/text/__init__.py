"""The room bench/metrics/text."""
