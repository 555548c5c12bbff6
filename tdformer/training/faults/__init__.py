"""Handles what goes wrong or stops a run: non-finite numbers, damaged samples, what cannot be read now, signals and deadlines."""
