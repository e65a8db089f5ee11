"""What papers on quantization act on, measured on a network and its sampler's calls."""
