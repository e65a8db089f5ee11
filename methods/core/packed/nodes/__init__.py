"""Packed modules, the nodes of the tree that a quantized layer packs to."""
