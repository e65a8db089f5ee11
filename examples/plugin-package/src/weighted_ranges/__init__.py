"""A quantization method for quantarena, in a package of its own."""
