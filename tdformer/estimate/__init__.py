"""Tells what a run would be and need, without running it."""
