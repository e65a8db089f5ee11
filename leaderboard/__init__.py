"""From rows to a ranked page: judge, ranking, tables, plots. Never imports torch."""
