"""Which errors of MLflow mean that it does not answer, which is worth a retry, and which that it refuses."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from models.errors import InputError, TransientError

T = TypeVar("T")

AWAY = {
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "TEMPORARILY_UNAVAILABLE",
}
"""Codes of MLflow for what may go by itself."""
BROKEN = {"INTERNAL_ERROR", "INVALID_STATE", "DATA_LOSS"}
"""Codes of a server that fails, and of MLflow's client where nothing or no JSON came back; of a database, an error."""
CONTENDED = "Giving up after"
"""In MLflow's words when others kept taking the number that a new version was to get."""


def shown(uri: str) -> str:
    """An address without user, password and query: what may be written into a log."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.netloc else uri


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into TransientError where it does not answer, InputError where its server refuses."""
    from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    remote = uri.startswith(("http://", "https://"))
    try:
        yield
    except (OperationalError, ConnectionError, TimeoutError) as error:
        raise _away(uri, error) from None
    except (json.JSONDecodeError, ParseError) as error:
        if not remote:
            raise
        raise _away(uri, error) from None
    except RequestException as error:
        # Downloads raise these as they are; MLflow's own calls wrap them.
        status = getattr(error.response, "status_code", None)
        if status is not None and 400 <= status < 500 and status not in {408, 429}:
            raise _refused(uri, error) from None
        raise _away(uri, error) from None
    except MlflowException as error:
        if error.error_code in AWAY or CONTENDED in str(error) or (remote and error.error_code in BROKEN):
            raise _away(uri, error) from None
        if remote:
            raise _refused(uri, error) from None
        raise


def _away(uri: str, error: BaseException) -> TransientError:
    return TransientError(f"{shown(uri)}: does not answer ({_short(uri, error)}); try again later.")


def _refused(uri: str, error: BaseException) -> InputError:
    return InputError(
        f"{shown(uri)}: refuses ({_short(uri, error)}); check mlflow.tracking_uri, the credentials and the model."
    )


def _short(uri: str, error: BaseException) -> str:
    text, parts = " ".join(str(error).split()), urlsplit(uri)
    for secret in (parts.netloc.rpartition("@")[0], parts.password, parts.query):
        text = text.replace(secret, "***") if secret else text
    return text if len(text) <= 300 else text[:297] + "..."


def within(seconds: float, uri: str, call: Callable[[], T]) -> T:
    """What `call` returns; TransientError where it takes longer.

    Each request has a time-out of its own, but a server that sends a byte now and then meets all of them.
    """
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    # A daemon: the interpreter does not wait for it at its end.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TransientError(f"{shown(uri)}: does not answer (not done within {seconds:g} s); try again later.")
    return found[0]
