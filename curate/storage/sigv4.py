"""Signature version 4: how a request to S3 proves in its headers who asks. Pure.

Source: AWS, "Signature Version 4 signing process", and of the S3 API reference "Authenticating Requests: Using the
Authorization Header", with the payload signed in one piece.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_SERVICE: Final = "s3"


@dataclass(frozen=True)
class Credentials:
    """Who asks. Printed, it shows no secret."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Request:
    """What is to be signed: path and query as they go over the wire (`encode_path`, `encode_query`)."""

    method: str
    host: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def encode_path(path: str) -> str:
    """Return a path percent-encoded once, its slashes left: what S3 both finds the blob by and checks."""
    return quote(path, safe="/")


def encode_query(parameters: Mapping[str, str]) -> str:
    """Return the parameters percent-encoded, in the order in which they are signed."""
    pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in parameters.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def sign(request: Request, credentials: Credentials, *, region: str, at: datetime) -> dict[str, str]:
    """Return all headers to send: the request's own, `Host`, the time `at` (aware), the body's digest, the proof."""
    time = at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(request.body).hexdigest()
    headers = {**request.headers, "Host": request.host, "X-Amz-Date": time, "X-Amz-Content-SHA256": digest}
    if credentials.session_token is not None:
        headers["X-Amz-Security-Token"] = credentials.session_token
    signed = sorted((name.lower(), " ".join(value.split())) for name, value in headers.items())
    names = ";".join(name for name, _ in signed)
    canonical = "\n".join(
        [request.method, request.path, request.query, *(f"{name}:{value}" for name, value in signed), "", names, digest]
    )
    scope = f"{time[:8]}/{region}/{_SERVICE}/aws4_request"
    to_sign = "\n".join([_ALGORITHM, time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    signature = _mac(_derive_key(credentials.secret_key, scope), to_sign).hex()
    proof = f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "Authorization": proof}


def _derive_key(secret_key: str, scope: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = _mac(key, part)
    return key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
