"""Rows of a table -> bytes of their pictures."""
