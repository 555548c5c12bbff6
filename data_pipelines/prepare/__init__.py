"""Prepares data sets on disk: writes them from a source, indexes existing shards, and verifies both."""
