"""Knows what one run keeps on disk: paths, creation, lock, sessions, metrics. Imports no torch."""
