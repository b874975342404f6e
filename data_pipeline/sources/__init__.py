"""Raw data sets: each yields its examples in a fixed order and reads their bytes."""
