"""From rows and their ranking to one HTML page, and to CSV and Parquet tables."""
