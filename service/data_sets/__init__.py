"""Data sets: what a registered one holds, and whether it is what its manifest says."""
