"""The watchdog notices a rank that died or hangs, names it on all ranks, and ends the run. This folder imports no torch."""
