"""Reads files of a local disk or a URL, and keeps downloaded shards."""
