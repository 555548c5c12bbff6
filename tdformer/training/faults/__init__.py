"""Handles what goes wrong or stops a run: non-finite numbers, unreadable samples, signals and deadlines."""
