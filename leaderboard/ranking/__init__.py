"""The room leaderboard/ranking."""
