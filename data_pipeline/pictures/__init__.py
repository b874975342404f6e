"""Bytes of a picture -> pixels of a crop -> the model's input."""
