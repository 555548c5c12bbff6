"""Renders and submits Slurm jobs, and requeues them until the run has ended. Imports no torch."""
