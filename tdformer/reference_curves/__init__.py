"""Holds the learning curves of published trainings, one CSV each, and reads those of users. README.md names their sources."""
