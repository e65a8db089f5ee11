"""Range searches: scale and zero point of a tensor, by min-max, error, percentile or threshold."""
