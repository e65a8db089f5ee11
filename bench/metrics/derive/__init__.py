"""Scripts that derive the committed weight files of metrics from published packages."""
