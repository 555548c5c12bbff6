"""Reads and writes samples on disk: WebDataset shards, FFCV files, the manifest and the index."""
