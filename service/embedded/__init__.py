"""`hush serve`: the whole service on one machine."""
