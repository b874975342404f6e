"""What jobs left behind, read for the API."""
