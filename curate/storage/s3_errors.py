"""What a bucket's refusals mean: the one table, for every S3 client. Pure."""

from __future__ import annotations

from typing import Final

from curate.errors import (
    AccessDeniedError,
    BlobExistsError,
    BlobNotFoundError,
    BlobRefusedError,
    ClockSkewError,
    StorageError,
    StorageUnavailableError,
)

NOT_MODIFIED: Final = 304
NOT_SATISFIABLE: Final = 416
"""What a range beyond the end is answered with."""
SKEW_STATUSES: Final = frozenset({400, 401, 403})
"""What stores answer to a signature of another time; not all of them say why."""
_PASSING_CODES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "TemporaryRedirect",
        "Throttling",
        "ThrottlingException",
        # The body was cut or changed on the way: the blob itself is fine.
        "BadDigest",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
    }
)
_PASSING_STATUSES = frozenset({408, 425, 429})
_DENIED_CODES = frozenset(
    {"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"}
)
_OTHER_REGION_CODES = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect"})
_MISSING_CODES = frozenset({"NoSuchKey", "NotFound", "404"})
_SKEW_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_REFUSED_STATUSES = frozenset({400, 411, 413, 414, 415, 422, 431})


def error_of_answer(operation: str, key: str, status: int, code: str) -> StorageError:
    """Return what an answer of 300 or above means; `code` is S3's own word, or the status where it said none."""
    message = f"{operation} {key}: {code} ({status})"
    if code in _SKEW_CODES:
        return ClockSkewError(message, hint="this machine's clock is wrong; it works once the clock is set")
    if code == "NoSuchBucket":
        return StorageError(message, hint="the bucket does not exist")
    if code in _OTHER_REGION_CODES:
        return AccessDeniedError(message, hint="set `region` to the one the bucket is in")
    if operation == "create" and status in (409, 412):
        return BlobExistsError(message)
    return _kind(status, code)(message)


def _kind(status: int, code: str) -> type[StorageError]:
    if status >= 500 or status in _PASSING_STATUSES or code in _PASSING_CODES:
        return StorageUnavailableError
    if status < 400 and code == str(status):  # a redirect that is not S3's: to a captive portal's page
        return StorageUnavailableError
    if status == 404 or code in _MISSING_CODES:
        return BlobNotFoundError
    if status in (401, 403) or code in _DENIED_CODES:
        return AccessDeniedError
    return BlobRefusedError if status in _REFUSED_STATUSES else StorageError
