"""What a job is: its states, and the records of it. Pure."""
