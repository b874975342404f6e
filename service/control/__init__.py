"""What is to be done about each job, and the loop that does it."""
