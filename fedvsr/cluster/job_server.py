"""The job server of a cluster's head: its address, and what its refusals mean."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from fedvsr.cluster import local_head
from fedvsr.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_CONNECT_S = 10


class NoAnswerError(UserError):
    """The job server does not answer, so there is nobody to say more to."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(
            f"no Ray job server answers at {address} ({reason}); is the head up, and its port "
            "forwarded (ssh -N -L 8265:127.0.0.1:8265 HEAD)?"
        )


def resolve(address: str | None) -> str:
    """The address of the job server: the one given, or the environment's, or this machine's.

    This machine's is that of `fedvsr cluster up`, whose token the process then has.

    Raises:
        UserError: it is not the address of a job server, or this machine's head has died.
    """
    for_ray = os.environ.get("RAY_ADDRESS", "")
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    address = address or (for_ray if for_ray.startswith("http") else None)
    if address is None:
        head = local_head.find()
        address = head.address if head else DEFAULT_ADDRESS
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UserError(
            f"--address {address}: jobs go to the job server of the cluster's head: http://HEAD:8265"
        )
    address = address.rstrip("/")
    local_head.show_token(address)
    return address


def require_answer(address: str) -> None:
    """Refuse an address that does not answer within seconds; Ray's own client waits minutes."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise NoAnswerError(address, str(error)) from None


@contextmanager
def address_alone() -> Iterator[None]:
    """Hide the variables by which Ray would override the address that it is told."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


_BROKEN = re.compile("connect|Payload", re.IGNORECASE)


@contextmanager
def explained(address: str, job_id: str | None = None) -> Iterator[None]:
    """Turn what Ray's client raises into a `UserError` of one line.

    Ray gives the HTTP status of a refusal only in its message, so that is what is looked at.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # What is not known below is raised again.
        text = str(error).strip()
        # By name: releases of Ray before token authentication lack the class.
        if type(error).__name__ == "AuthenticationError":
            refused = text.startswith("Authentication failed")
            problem = "refuses this token" if refused else "asks for a token"
            raise UserError(
                f"the cluster at {address} {problem}: set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH=FILE, a file with the head's token (default ~/.ray/auth_token)"
            ) from None
        # Also aiohttp's ClientConnectorError, ServerDisconnectedError and ClientPayloadError.
        if isinstance(error, ConnectionError) or _BROKEN.search(type(error).__name__):
            raise NoAnswerError(address, type(error).__name__) from None
        if "status code 404" in text and job_id is not None:
            raise UserError(
                f"{address} has no job {job_id}; `fedvsr jobs` lists its jobs"
            ) from None
        if "status code 413" in text:
            raise UserError(
                "the job's package is larger than Ray takes (104.9 MB); put large files where "
                "every node reads them"
            ) from None
        if isinstance(error, RuntimeError):
            last = [line for line in text.splitlines() if line.strip()][-1:] or [""]
            raise UserError(f"{address}: {last[0].strip()}") from None
        raise
