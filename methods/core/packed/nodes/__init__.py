"""The room methods/core/packed/nodes."""
