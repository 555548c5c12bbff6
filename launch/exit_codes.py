"""Exit codes of `tdformer`. The watchdog's own is `tdformer.distributed.watchdog.diagnosis.EXIT_PEER_LOST`."""

EXIT_ERROR = 2
"""The input is wrong, or a file is damaged. The message says how to correct it."""
EXIT_STOPPED = 75
"""A signal or a deadline stopped the run, and its state is saved. The same command continues it. (sysexits.h: EX_TEMPFAIL.)"""
