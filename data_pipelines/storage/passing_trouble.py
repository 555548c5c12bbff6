"""Tells trouble that passes (a full file table, a lost mount, a busy server) from damage and mistakes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from data_pipelines.errors import DataError, UnavailableError, UserError

ABOUT_THE_PATH = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.EEXIST})
"""Errors that say what lies at a path, or that the path is none. Another attempt gives the same error."""
OF_A_LOST_MOUNT = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
"""Errors that a path gives whose mount or automounter has failed. For a path that was never read they are somebody's mistake."""
ABOUT_THE_FILE_SYSTEM = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV})
"""Errors that say what a file system cannot do at all."""
ABOUT_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""Errors of files that cannot be written. Somebody has to make room, or choose another place."""
LASTING = ABOUT_THE_PATH | ABOUT_THE_FILE_SYSTEM | ABOUT_WRITING
NOT_ABOUT_CONTENT = (MemoryError, SystemError)
"""Errors that no content causes. Python 3.11 raises SystemError in ast.literal_eval, with which NumPy reads headers, if another parse
begins within it: in another thread, or in a finaliser that the garbage collector calls."""
TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})

SEE_TO_IT = "see to its permissions, and give the same command again"
"""The advice for a file that may not be read. It is not damaged, so nothing is to be removed."""
GO_ON = "nothing shows that it is damaged, so give the same command again when it can be read"
FEWER_FILES = "raise `ulimit -n`, or lower data.workers or --processes, and the same command goes on"


def is_passing(error: BaseException, *, was_there: bool = False) -> bool:
    """True if an error says only that something cannot be read at this moment.

    was_there: the file was listed or read before. Then it is passing trouble too if the path does not lead to it any more, or if it may
    not be read, since that is what a lost mount looks like.
    An OSError without a number comes from a library that has read the content and found it damaged.
    """
    if isinstance(error, NOT_ABOUT_CONTENT):
        return True
    if not isinstance(error, OSError) or error.errno is None:
        return False
    if error.errno in OF_A_LOST_MOUNT:
        return was_there
    return error.errno not in LASTING


def is_of_a_disk(error: OSError) -> bool:
    """True for an error that only a disk, a mount, or a lack of files or memory gives, wherever in the program it comes from."""
    return error.errno in TOO_MANY_FILES | {errno.EIO, errno.ESTALE, errno.ENOMEM}


def unavailable(what: object, error: BaseException) -> UnavailableError:
    """Make the error for something that cannot be read now."""
    number = error.errno if isinstance(error, OSError) else None
    remedy = FEWER_FILES if number in TOO_MANY_FILES else SEE_TO_IT if number in (errno.EACCES, errno.EPERM) else GO_ON
    return UnavailableError(f"{what} cannot be read now ({reason_of(error)}); {remedy}.")


def read_error(what: object, error: BaseException, otherwise: str, *, was_there: bool = False) -> UserError:
    """Make the error for something that could not be read: an UnavailableError for passing trouble, or a DataError.

    otherwise: the whole sentence of the DataError.
    """
    return unavailable(what, error) if is_passing(error, was_there=was_there) else DataError(otherwise)


@contextmanager
def reading(what: object, *, was_there: bool = False) -> Iterator[None]:
    """Raise UnavailableError for passing trouble inside. Other errors go through. The message names the file if the error does."""
    try:
        yield
    except (OSError, *NOT_ABOUT_CONTENT) as error:
        if not is_passing(error, was_there=was_there):
            raise
        named = error.filename if isinstance(error, OSError) else None
        raise unavailable(named or what, error) from None


@contextmanager
def reading_own(what: object) -> Iterator[None]:
    """Do as `reading` does for files that this program wrote: to be denied them is trouble that passes. FileNotFoundError goes through."""
    try:
        with reading(what):
            yield
    except PermissionError as error:
        raise unavailable(error.filename or what, error) from None


def reason_of(error: BaseException) -> str:
    """Say an error in words: what the operating system calls it, else its text, else its type."""
    if isinstance(error, MemoryError):
        return "memory ran out"
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in errno.errorcode:  # the errors of name servers have numbers of their own
        return os.strerror(number)
    return str(error).strip() or type(error).__name__
