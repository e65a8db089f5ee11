"""Reading results: comparisons, claims of papers, tables, and publishing the leaderboard."""
