"""Writes data sets, indexes the shards of others, and verifies both."""
