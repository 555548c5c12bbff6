"""Defines the errors that a user can cause. Each is one sentence."""


class UserError(ValueError):
    """A mistake in what the user gave. Its text says what is wrong, where, and what to do.

    The command line prints the text alone (no traceback) and exits with code 2.
    """


class DataError(UserError):
    """Something is wrong with a data set on disk. The text names the shard and the sample key."""
