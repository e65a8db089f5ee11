"""The room leaderboard/page."""
