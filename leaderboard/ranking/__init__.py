"""From rows to ranked boards: votes of a judge, K-Sort ratings, intervals and tie groups."""
