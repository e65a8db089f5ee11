"""Ranking engines for people's votes, as the arena uses them."""
