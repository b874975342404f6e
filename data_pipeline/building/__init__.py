"""A raw data set -> shards, index files and manifest."""
