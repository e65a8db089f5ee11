"""Plants outlier channels in a network without changing its function: ``?outliers=STRENGTH``."""
