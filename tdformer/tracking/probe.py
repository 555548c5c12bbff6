"""Asks a tracking server whether it takes anything from this user. It runs on a login node, before a job waits in the queue.

MLflow is not imported here, because that takes seconds.
"""

from __future__ import annotations

import http.client
import json
import urllib.error

from data_pipelines.errors import UserError
from tdformer.tracking.client import is_server
from tdformer.tracking.errors import FORBIDDEN, UNAUTHENTICATED, is_refusal
from tdformer.tracking.network import (
    meaning_of_network_error,
    meaning_of_redirect,
    open_request,
    proxy_of,
    redirect_of,
    request_of_experiment,
    speaks_no_tls,
)

MOST_BYTES = 10_000
"""An error of MLflow's API is shorter than this. A page of HTML may be longer and is not needed."""


def probe(uri: str, experiment: str) -> str | None:
    """Return a sentence if the server cannot be reached from here. From the nodes it may be reached all the same.

    Returns None if all is well, or if the URI is not that of a server. Raises UserError if the server refuses, or is not MLflow.
    """
    if not is_server(uri):
        return None
    request = request_of_experiment(uri, experiment)
    try:
        with open_request(request) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        return _meaning(uri, error)
    except (ValueError, http.client.HTTPException):
        raise UserError(_no_server(uri)) from None
    except OSError as error:
        if speaks_no_tls(error):
            raise UserError(f"MLflow at {uri} cannot be used: {meaning_of_network_error(error)}.") from None
        return f"MLflow at {uri} cannot be reached from here ({_reason(uri, error)}); runs go on without it, and send when it answers."
    return None


def _no_server(uri: str) -> str:
    if place := redirect_of(uri):
        return f"{uri} is no MLflow server: {meaning_of_redirect(place)}."
    return f"{uri} is no MLflow server: it answered something else than JSON; mend tracking.uri{_of_proxy(uri)}."


def _reason(uri: str, error: OSError) -> str:
    reason, proxy = meaning_of_network_error(error) or str(getattr(error, "reason", error)), proxy_of(uri)
    return f"{proxy} does not pass it on ({reason}): {proxy.remedy}" if proxy else reason


def _of_proxy(uri: str) -> str:
    proxy = proxy_of(uri)
    return f"; it was asked through {proxy}: {proxy.remedy}" if proxy else ""


def _meaning(uri: str, error: urllib.error.HTTPError) -> str | None:
    """Return what the server's error means for the job, or None if it does not matter. Raises UserError if the server refuses."""
    code = _error_code(error)
    if code == "RESOURCE_DOES_NOT_EXIST":
        return None  # The job will make the experiment.
    through = "" if code else _of_proxy(uri)
    if error.code in (UNAUTHENTICATED, FORBIDDEN):
        what = "does not know you" if error.code == UNAUTHENTICATED else "does not permit this to you"
        raise UserError(
            f"MLflow at {uri} {what} ({error.code}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
            f"or ask who runs it{through}."
        )
    if is_refusal(error.code):
        raise UserError(
            f"{uri} does not speak MLflow's API ({error.code} {error.reason}); mend tracking.uri, or update the server{through}."
        )
    what = f"({error.code} {error.reason}{through})"
    return f"MLflow at {uri} has an error of its own {what}; runs go on without it, and send when it is mended."


def _error_code(error: urllib.error.HTTPError) -> str | None:
    """Return the name that MLflow's API gives to an error. It is None if the answer is not from MLflow's API."""
    try:
        answer = json.loads(error.read(MOST_BYTES))
    except (ValueError, OSError, http.client.HTTPException):
        return None
    return answer.get("error_code") if isinstance(answer, dict) else None
