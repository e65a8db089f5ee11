"""Budget curves: the same cells at a preset's budget times several factors."""
