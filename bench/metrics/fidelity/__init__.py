"""The room bench/metrics/fidelity."""
