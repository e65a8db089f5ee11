"""Running a plan: tasks handed to executors, rows written as they come, progress on stderr."""
