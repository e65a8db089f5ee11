"""Reports on results: comparisons, claims of papers, tables, the page, checks of the machine."""
