"""Raw data set -> shards and manifest -> batches. Knows nothing of training."""
