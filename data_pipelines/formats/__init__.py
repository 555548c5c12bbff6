"""Knows how samples lie on disk: WebDataset shards, FFCV files, index and manifest."""
