"""Notices a rank that died or hangs, names it on all ranks, and ends the run. Imports no torch."""
