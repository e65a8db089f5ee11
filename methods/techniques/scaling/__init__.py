"""The room methods/techniques/scaling."""
