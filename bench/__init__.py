"""The harness: cells, stages, store, runner, command line."""
