"""Defines the errors that a user can cause. Each is one sentence."""


class UserError(ValueError):
    """A mistake in what the user gave. Its text says what is wrong, where, and what to do.

    The command line prints the text alone (no traceback) and exits with code 2.
    """


class DataError(UserError):
    """Something is wrong with a data set on disk. The text names the shard and the sample key."""


class UnavailableError(UserError):
    """Something cannot be read now, and nothing says that it is damaged. A later attempt may succeed.

    The text names the thing, the reason, and how to go on. It never advises to remove anything. The command line exits with code 75.
    retry_after_s: seconds after which a server asked to be tried again; 0 if none did.
    """

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
