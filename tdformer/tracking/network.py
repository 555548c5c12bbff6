"""Tells what keeps a server from being reached: the network, a proxy, TLS, or a page that something else shows in its place.

MLflow is not imported here, because that takes seconds.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NO_SUCH_HOST, NOT_LISTENING = "there is no such host", "nothing listens there"
NO_NAME_SERVER = f"{NO_SUCH_HOST}, or the name server does not answer"
TOO_SLOW = "it did not answer in time"
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
"""Reasons that OpenSSL gives when what answers does not speak TLS."""
CERTIFICATE_REMEDY = "set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of its authority, or let it be mended"
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Proxy:
    """A proxy that the environment names for a server."""

    variable: str
    address: str
    host: str
    """The host of the server."""

    def __str__(self) -> str:
        return f"the proxy {self.address} of {self.variable}"

    @property
    def remedy(self) -> str:
        return f"correct {self.variable}, or add {self.host} to no_proxy"


def proxy_of(uri: str) -> Proxy | None:
    """Return the proxy through which a server is asked, without its password. None if it is asked directly."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    names = [name for base in (f"{parts.scheme}_proxy", "all_proxy") for name in (base, base.upper())]
    variable = next((name for name in names if os.environ.get(name)), None)
    return Proxy(variable, os.environ[variable].rpartition("@")[2], parts.hostname) if variable else None


def meaning_of_network_error(error: BaseException) -> str | None:
    """Return what an error of the network means, and the remedy where there is one. None if it is no error of these kinds."""
    causes = list(chain(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted here ({cause.verify_message or cause}): {CERTIFICATE_REMEDY}"
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, TimeoutError):
            return _meaning_of_tls(cause)
        if isinstance(cause, socket.gaierror):
            return NO_NAME_SERVER if cause.errno == socket.EAI_AGAIN else NO_SUCH_HOST
        if isinstance(cause, ConnectionRefusedError):
            return NOT_LISTENING
    return None


def is_refusal_of_tls(error: BaseException) -> bool:
    """Tell whether the certificate or the protocol is wrong, so that waiting will not help."""
    return speaks_no_tls(error) or any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain(error))


def speaks_no_tls(error: BaseException) -> bool:
    """Tell whether something answered that does not speak TLS."""
    wrong = [f"{cause.reason} {cause}" for cause in chain(error) if isinstance(cause, ssl.SSLError)]
    return any(reason in text for reason in NO_TLS for text in wrong)


def _meaning_of_tls(error: ssl.SSLError) -> str:
    if speaks_no_tls(error):
        return "it does not speak TLS: write http:// in place of https://"
    return f"the TLS connection to it fails ({error.reason or error})"


def tls_context(uri: str) -> ssl.SSLContext | None:
    """Return what a server's certificate is checked by: the variables that MLflow's client goes by, or else this machine's authorities."""
    if not uri.startswith("https:"):
        return None
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return ssl._create_unverified_context()
    variables = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    path = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    is_folder = path is not None and os.path.isdir(path)
    return ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)


def redirect_of(uri: str) -> str | None:
    """Return the address that a server names in place of an answer, without its query. None if it names none, or does not answer."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    try:
        open_request(request_of_experiment(uri, "Default"), Stay()).close()
    except urllib.error.HTTPError as error:
        place = error.headers.get("Location") if 300 <= error.code < 400 else None
        return urllib.parse.urljoin(uri, place).partition("?")[0] if place else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return None


def open_request(request: urllib.request.Request, *handlers: urllib.request.BaseHandler) -> Any:
    """Open a request through the proxy that the environment names, if any. Raises OSError and http.client.HTTPException."""
    by_tls = urllib.request.HTTPSHandler(context=tls_context(request.full_url))
    return urllib.request.build_opener(by_tls, *handlers).open(request, timeout=TIMEOUT_S)


def request_of_experiment(uri: str, experiment: str) -> urllib.request.Request:
    """Return the request that asks a server for an experiment, as MLflow's client makes it first."""
    query = urllib.parse.urlencode({"experiment_name": experiment})
    return urllib.request.Request(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?{query}", headers=_authorization())


def _authorization() -> dict[str, str]:
    """Return the HTTP headers by which MLflow's client would authenticate itself."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def meaning_of_redirect(to: str) -> str:
    """Return what it means that a server names another address, and the remedies."""
    return (
        f"it redirects to {to}: if that is a login page, set MLFLOW_TRACKING_TOKEN or give the address behind it; "
        f"else give the address that it redirects to"
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that led to it. MLflow wraps what requests, urllib3 and SQLAlchemy raise."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
