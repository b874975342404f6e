"""A JobSpec and batches -> a model and everything known about each example. Runs without the service."""
