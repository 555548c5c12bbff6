"""Exit codes of `tdformer`. The watchdog's own is `tdformer.distributed.watchdog.diagnosis.EXIT_PEER_LOST`."""

EXIT_ERROR = 2
"""The input is wrong, or a file is damaged. The message says how to correct it."""
EXIT_STOPPED = 75
"""A signal, a deadline, or something that cannot be read now stopped the command. The same command continues it, and the state of a run is
saved. (sysexits.h: EX_TEMPFAIL.)"""
