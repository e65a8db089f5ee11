"""Draw policies of single papers: which recorded points a method calibrates on."""
