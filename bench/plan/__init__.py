"""What a run would do, before it does anything: its cells, their state, time and disk space."""
