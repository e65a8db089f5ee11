"""The room bench/run."""
