"""Personalisation: a workload is tuned to a subject, drawn from, and scored."""
