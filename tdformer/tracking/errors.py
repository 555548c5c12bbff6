"""Tells what an error of MLflow's client means: whether waiting helps, and what the user should know.

Exception types and status codes decide. Texts are looked into only for what MLflow and database drivers tell in no other way.
"""

from __future__ import annotations

import os
import sqlite3

from tdformer.tracking.client import TIMEOUT_S, is_server
from tdformer.tracking.network import (
    NO_SUCH_HOST,
    NOT_LISTENING,
    TOO_SLOW,
    chain,
    is_refusal_of_tls,
    meaning_of_network_error,
    meaning_of_redirect,
    proxy_of,
    redirect_of,
)

UNAUTHENTICATED, FORBIDDEN, REQUEST_TIMEOUT, TOO_MANY_REQUESTS = 401, 403, 408, 429
ENDPOINT_NOT_FOUND = "ENDPOINT_NOT_FOUND"
UNREACHABLE = "it cannot be reached"
UNKNOWN_USER = "it does not know you: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
"""What sqlite answers while another process holds the file, and on a disk that is full or away."""


class RefusedError(Exception):
    """MLflow refuses, and waiting will not help. The message is for the user."""


# --- texts ----------------------------------------------------------------------------------------------------------

NO_JSON = "not in a valid JSON format"
"""MLflow raises this with the code of any internal error, whatever server gave the answer."""
PAGE_REFUSES = "failed with error code 4"
"""The beginning of a status. MLflow gives some of them, such as 405, the code of an internal error."""
DATABASE_IS_AWAY = ("Connection refused", "could not connect", "timeout expired")
"""psycopg2 raises one class, without a code or a cause, for a database that is away and for a wrong password."""
MEANINGS = (
    (NO_JSON, "something else than MLflow listens there"),
    # MLflow raises this with the code of any wrong parameter.
    ("maintenance mode", "it is a folder, which MLflow keeps nothing in any more; give sqlite:///FILE or the URI of a server"),
    # These are psycopg2's.
    ("Connection refused", NOT_LISTENING),
    ("Name or service not known", NO_SUCH_HOST),
    ("timeout expired", TOO_SLOW),
)


def _text(error: Exception) -> str:
    """Return the text in which to look. What a server says of itself is not looked into: it may be about the server's own database."""
    from mlflow.exceptions import RestException

    return "" if isinstance(error, RestException) else str(error)


# --- decisions ------------------------------------------------------------------------------------------------------


def is_permanent(error: Exception, uri: str) -> bool:
    """True if waiting will not help: MLflow refuses. False if a server or a database is away, overloaded or broken."""
    if isinstance(error, RefusedError):
        return True
    if is_server(uri):
        status = _status(error)
        return NO_JSON in _text(error) or is_refusal_of_tls(error) or (status is not None and is_refusal(status))
    return not any(map(_is_away, chain(error))) and not any(text in _text(error) for text in DATABASE_IS_AWAY)


def is_refusal(status: int) -> bool:
    """True for an HTTP status that stays the same if the request is repeated."""
    return 400 <= status < 500 and status not in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS)


def explain(error: Exception, uri: str = "") -> str:
    """Return what happened, on one line of about 300 characters. It names the remedy where there is one.

    uri: that of the server that was asked, for which the environment may name a proxy.
    """
    meaning, proxy = _meaning(error, uri), proxy_of(uri)
    if proxy is None or not _came_through_network(error):
        return meaning
    if any(type(each).__name__ == "ProxyError" for each in chain(error)):  # of requests, and of urllib3
        return f"{proxy} does not pass it on ({meaning}): {proxy.remedy}"
    return f"{meaning} (it was asked through {proxy}; if that is wrong, {proxy.remedy})"


def _meaning(error: Exception, uri: str) -> str:
    if _may_be_redirected(error) and is_server(uri) and (place := redirect_of(uri)):
        return meaning_of_redirect(place)
    if meaning := _meaning_of_status(error) or meaning_of_network_error(error) or _meaning_of_type(error):
        return meaning
    for part, meaning in MEANINGS:
        if part in _text(error):
            return meaning
    of_sqlite = next((each for each in chain(error) if isinstance(each, sqlite3.Error)), None)  # the rest is SQLAlchemy's, for programmers
    text = " ".join(str(of_sqlite or error).split()) or type(error).__name__
    # A long text of requests ends with the reason.
    return text if len(text) <= 300 else f"{text[:150]} … {text[-150:]}"


def _may_be_redirected(error: Exception) -> bool:
    """Tell whether something else than MLflow's API answered. After a redirect, a request to write has become one to read."""
    from mlflow.exceptions import MlflowException, RestException

    is_page = isinstance(error, MlflowException) and not isinstance(error, RestException)
    return is_page and any(text in str(error) for text in (NO_JSON, PAGE_REFUSES))


def _came_through_network(error: Exception) -> bool:
    """Tell whether an error may be a proxy's: one of the connection, or an answer that is not of MLflow's API."""
    from mlflow.exceptions import MlflowException, RestException
    from requests.exceptions import RequestException

    if isinstance(error, RestException):
        return False
    return isinstance(error, MlflowException) or any(isinstance(each, RequestException) for each in chain(error))


def _meaning_of_status(error: Exception) -> str | None:
    status = _status(error)
    if status == UNAUTHENTICATED:
        return UNKNOWN_USER
    if status == FORBIDDEN:
        return "it does not permit this to you"
    # A run or an experiment that is not there has status 404 too, and an error code of its own.
    if getattr(error, "error_code", None) == ENDPOINT_NOT_FOUND:
        return "it does not speak MLflow's API, or an older version of it"
    return None


def _meaning_of_type(error: Exception) -> str | None:
    from requests.exceptions import ConnectTimeout
    from urllib3.exceptions import ReadTimeoutError

    for kind, meaning in (
        (ConnectTimeout, UNREACHABLE),
        (ReadTimeoutError, f"it did not answer within {os.environ.get('MLFLOW_HTTP_REQUEST_TIMEOUT', TIMEOUT_S)} s"),
        (TimeoutError, TOO_SLOW),
    ):
        if any(isinstance(each, kind) for each in chain(error)):
            return meaning
    return None


def _status(error: Exception) -> int | None:
    """Return the HTTP status that MLflow's client was answered. It is None if there was no answer, or none with a known status."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import HTTPError

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return error.response.status_code if isinstance(error, HTTPError) and error.response is not None else None


def _is_away(error: BaseException) -> bool:
    """True if a database cannot be reached or written at the moment, or is locked by another process."""
    from sqlalchemy.exc import DBAPIError

    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING  # The lowest byte is the code; others say more about it.
    return isinstance(error, (ConnectionError, TimeoutError)) or (isinstance(error, DBAPIError) and error.connection_invalidated)
