"""Raw images -> shards -> batches. Knows nothing of the model or of how it is trained."""
