"""Asks a tracking server whether it takes anything from this user. It runs on a login node, before a job waits in the queue.

MLflow is not imported here, because that takes seconds.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request

from data_pipelines.errors import UserError
from tdformer.tracking.client import is_server
from tdformer.tracking.errors import FORBIDDEN, UNAUTHENTICATED, is_refusal

TIMEOUT_S = 5.0
MOST_BYTES = 10_000
"""An error of MLflow's API is shorter than this. A page of HTML may be longer and is not needed."""


def probe(uri: str, experiment: str) -> str | None:
    """Return a sentence if the server cannot be reached from here. From the nodes it may be reached all the same.

    Returns None if all is well, or if the URI is not that of a server. Raises UserError if the server refuses, or is not MLflow.
    """
    if not is_server(uri):
        return None
    query = urllib.parse.urlencode({"experiment_name": experiment})
    request = urllib.request.Request(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?{query}", headers=_authorization())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        return _meaning(uri, error)
    except (ValueError, http.client.HTTPException):
        raise UserError(f"{uri} is no MLflow server: it answered something else than JSON; mend tracking.uri.") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        return f"MLflow at {uri} cannot be reached from here ({reason}); runs go on without it, and send when it answers."
    return None


def _meaning(uri: str, error: urllib.error.HTTPError) -> str | None:
    """Return what the server's error means for the job, or None if it does not matter. Raises UserError if the server refuses."""
    if _error_code(error) == "RESOURCE_DOES_NOT_EXIST":
        return None  # The job will make the experiment.
    if error.code in (UNAUTHENTICATED, FORBIDDEN):
        what = "does not know you" if error.code == UNAUTHENTICATED else "does not permit this to you"
        raise UserError(
            f"MLflow at {uri} {what} ({error.code}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
            f"or ask who runs it."
        )
    if is_refusal(error.code):
        raise UserError(f"{uri} does not speak MLflow's API ({error.code} {error.reason}); mend tracking.uri, or update the server.")
    return f"MLflow at {uri} has an error of its own ({error.code} {error.reason}); runs go on without it, and send when it is mended."


def _error_code(error: urllib.error.HTTPError) -> str | None:
    """Return the name that MLflow's API gives to an error. It is None if the answer is not from MLflow's API."""
    try:
        answer = json.loads(error.read(MOST_BYTES))
    except (ValueError, OSError, http.client.HTTPException):
        return None
    return answer.get("error_code") if isinstance(answer, dict) else None


def _authorization() -> dict[str, str]:
    """Return the HTTP headers by which MLflow's client would authenticate itself."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
