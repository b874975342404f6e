"""Studies: jobs that are compared. What one is, its jobs, their comparison, and which of them are hopeless. Pure."""
