"""The command line: one module for each group of verbs."""

from quantarena.bench.cli.main import main, run

__all__ = ["main", "run"]
