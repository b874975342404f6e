"""The database: the truth about every job."""
