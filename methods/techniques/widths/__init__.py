"""Widths by layer: what each layer loses at a width, and the best choice within a budget."""
