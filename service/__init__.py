"""Jobs in, results out. Imports no torch."""
