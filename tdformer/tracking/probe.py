"""Whether a tracking server takes anything from this user, asked without MLflow: from a login node, before a job waits in the queue."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.parse
import urllib.request

from data_pipelines.errors import UserError
from tdformer.tracking.client import is_server

TIMEOUT_S = 5.0


def probe(uri: str, experiment: str) -> str | None:
    """A sentence if the server cannot be reached from here, which need not hold for the nodes; None if all is well, or it is no server.

    Raises UserError if it refuses, or is no MLflow.
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
    except ValueError:
        raise UserError(f"{uri} is no MLflow server: it answered something else than JSON; mend tracking.uri.") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        return f"MLflow at {uri} cannot be reached from here ({reason}); runs go on without it, and send when it answers."
    return None


def _meaning(uri: str, error: urllib.error.HTTPError) -> str | None:
    if error.code == 404 and b"RESOURCE_DOES_NOT_EXIST" in error.read(10_000):
        return None  # the experiment will be made
    if error.code in (401, 403):
        what = "does not know you" if error.code == 401 else "does not permit this to you"
        raise UserError(
            f"MLflow at {uri} {what} ({error.code}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
            f"or ask who runs it."
        )
    if 400 <= error.code < 500 and error.code not in (408, 429):
        raise UserError(f"{uri} does not speak MLflow's API ({error.code} {error.reason}); mend tracking.uri, or update the server.")
    return f"MLflow at {uri} has an error of its own ({error.code} {error.reason}); runs go on without it, and send when it is mended."


def _authorization() -> dict[str, str]:
    """As MLflow's client does it."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
