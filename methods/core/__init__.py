"""The quantization core. It knows no method, no model class and nothing of bench or leaderboard."""
