"""Turns raw images into shards, and shards into batches. Knows nothing of the model or of how it is trained."""
