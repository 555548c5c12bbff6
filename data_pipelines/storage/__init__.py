"""Reads files from a local disk or a URL, and caches downloaded shards."""
