"""The room methods/techniques/calibrate."""
