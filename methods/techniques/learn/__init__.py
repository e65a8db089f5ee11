"""Learning of roundings, scales and weights, block by block, under reconstruction losses."""
