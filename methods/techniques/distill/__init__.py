"""The room methods/techniques/distill."""
