"""Reads samples from the layouts in which data sets are published, before they are in shards."""
