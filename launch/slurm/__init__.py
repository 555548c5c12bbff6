"""Jobs for Slurm: rendered, submitted, and put back into the queue until the run has ended. Imports no torch."""
