"""The blob store over any S3-compatible service. The only home of boto3, with the two modules beside it."""

from __future__ import annotations

import configparser
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypedDict, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from botocore.session import Session as CoreSession
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from urllib3.exceptions import HTTPError as BrokenLinkError

from curate.errors import (
    AccessDeniedError,
    BlobExistsError,
    BlobNotFoundError,
    BlobRefusedError,
    BlobTooLargeError,
    ClockSkewError,
    ConfigError,
    StorageError,
    StorageUnavailableError,
)
from curate.storage.keys import verify_key, verify_prefix
from curate.storage.ports import STREAM_BYTES, BlobInfo, ServerClock, TaggedBlob
from curate.storage.s3_clock import SkewWatch, sign_by_clock
from curate.storage.s3_models import make_lean_loader

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, PutObjectOutputTypeDef

_PASSING_ERRORS = (
    BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
    BrokenLinkError,  # botocore lets it through when an error's own answer breaks off
    ResponseParserError,  # an answer that is not S3's: a captive portal, a proxy's error page
)
_PASSING_CODES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        # The body was cut or changed on the way: the blob itself is fine.
        "BadDigest",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
    }
)
_PASSING_STATUSES = frozenset({408, 425, 429})
_DENIED_CODES = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})
_MISSING_CODES = frozenset({"NoSuchKey", "NotFound", "404"})
_SKEW_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_SKEW_STATUSES = frozenset({400, 401, 403})
"""What stores answer to a signature of another time; not all of them say why."""
_REFUSED_STATUSES = frozenset({400, 411, 413, 414, 415, 422, 431})
_NOT_MODIFIED = 304
_NOT_SATISFIABLE = 416
"""What a range beyond the end is answered with."""

T = TypeVar("T")


class _Condition(TypedDict, total=False):
    IfNoneMatch: str


class S3Settings(BaseModel):
    """Where the bucket is and who asks. Without keys and file, boto3's own credential chain decides.

    `credentials_file` holds `{"access_key": ..., "secret_key": ...}` as JSON, or AWS's shared ini format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket: str = Field(min_length=3)
    endpoint_url: str | None = None
    """None means AWS. With an endpoint, buckets are addressed by path."""
    region: str = "us-east-1"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    credentials_file: Path | None = None
    connect_timeout_s: float = Field(default=5.0, gt=0)
    read_timeout_s: float = Field(default=20.0, gt=0)
    max_attempts: int = Field(default=2, ge=1)
    """Attempts inside one call; small, because callers back off by themselves."""
    max_connections: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _one_source_of_credentials(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key come together")
        if self.access_key is not None and self.credentials_file is not None:
            raise ValueError("give either keys or a credentials_file, not both")
        return self


class S3BlobStore:
    """A `BlobStore` in one bucket. Safe to share between threads.

    A retried `create` may find its own first attempt and report the key as taken; with content-addressed
    keys and one writer a key that is what the caller wants to know.
    """

    def __init__(self, settings: S3Settings, clock: ServerClock | None = None) -> None:
        """With a `clock` requests are signed at its time, and answers teach it; without, at the machine's own."""
        self._bucket = settings.bucket
        self._client = _build_client(settings)
        self._clock = clock
        if clock is not None:
            sign_by_clock(self._client, clock)

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write the whole blob, replacing what was there."""
        verify_key(key)
        with _translated("put", key):
            _tag_of(
                self._ask(
                    lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=content_type)
                ),
                key,
            )

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write only if the key is free (`If-None-Match: *`; stores that ignore the header overwrite)."""
        verify_key(key)
        with _translated("create", key):
            self._ask(
                lambda: self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=data, ContentType=content_type, IfNoneMatch="*"
                )
            )

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read the whole blob; StorageError when it is larger than `max_bytes`, before reading further."""
        verify_key(key)
        with _translated("get", key):
            response = self._ask(lambda: self._client.get_object(Bucket=self._bucket, Key=key))
            return _read_body(response, key, max_bytes)

    def get_if_changed(self, key: str, tag: str | None, *, max_bytes: int | None = None) -> TaggedBlob | None:
        """Read the whole blob unless it is still the one with this tag; a store that ignores the header sends it."""
        verify_key(key)
        condition: _Condition = {} if tag is None else {"IfNoneMatch": tag}
        with _translated("get", key):
            try:
                response = self._ask(lambda: self._client.get_object(Bucket=self._bucket, Key=key, **condition))
            except ClientError as exc:
                if _http_status(exc) == _NOT_MODIFIED:
                    return None
                raise
            return TaggedBlob(_read_body(response, key, max_bytes), _tag_of(response, key))

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """Yield the blob's bytes from `start` on, in pieces, with one request (`Range`)."""
        verify_key(key)
        with _translated("stream", key):
            try:
                response = self._ask(
                    lambda: self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={start}-")
                )
            except ClientError as exc:
                if _http_status(exc) == _NOT_SATISFIABLE:
                    return
                raise
            with closing(response["Body"]) as body:
                yield from body.iter_chunks(STREAM_BYTES)

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None when nothing lies there."""
        verify_key(key)
        try:
            with _translated("size", key):
                return self._ask(lambda: self._client.head_object(Bucket=self._bucket, Key=key))["ContentLength"]
        except BlobNotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs under the prefix in key order.

        The whole listing is read first: SeaweedFS sorts folder by folder (`a/x` before `a-b/x`), AWS by bytes.
        """
        verify_prefix(prefix)
        with _translated("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            found = [(entry["Key"], entry["Size"]) for page in pages for entry in page.get("Contents", ())]
        yield from (BlobInfo(key=key, size_bytes=size) for key, size in sorted(found))

    def delete(self, key: str) -> None:
        """Remove the blob; removing nothing is fine."""
        verify_key(key)
        with _translated("delete", key):
            self._ask(lambda: self._client.delete_object(Bucket=self._bucket, Key=key))

    def _ask(self, request: Callable[[], T]) -> T:
        """Send a request; once more when its refusal taught us that our clock was wrong."""
        watch = SkewWatch(self._clock) if self._clock is not None else None
        try:
            return request()
        except ClientError as exc:
            if watch is None or _http_status(exc) not in _SKEW_STATUSES or not watch.was_corrected():
                raise
        return request()


def _tag_of(response: GetObjectOutputTypeDef | PutObjectOutputTypeDef, key: str) -> str:
    """Return the blob's tag. Every blob store answers with one; a captive portal says 200 to anything it hears."""
    tag = response.get("ETag")
    if not tag:
        raise StorageUnavailableError(f"{key}: an answer without a tag is not a blob store's")
    return tag


def _read_body(response: GetObjectOutputTypeDef, key: str, max_bytes: int | None) -> bytes:
    with closing(response["Body"]) as body:  # as its own context manager it would give the bare stream
        if max_bytes is not None and response["ContentLength"] > max_bytes:
            raise BlobTooLargeError(f"{key} holds {response['ContentLength']} bytes, more than {max_bytes}")
        return body.read()


def ensure_bucket(settings: S3Settings) -> None:
    """Create the bucket unless it is there. Needs rights that devices do not have."""
    client = _build_client(settings)
    with _translated("create bucket", settings.bucket):
        try:
            client.head_bucket(Bucket=settings.bucket)
        except ClientError as exc:
            if _http_status(exc) != 404:
                raise
            _create_bucket(client, settings)


def _create_bucket(client: S3Client, settings: S3Settings) -> None:
    try:
        if settings.endpoint_url is None and settings.region != "us-east-1":
            client.create_bucket(
                Bucket=settings.bucket,
                CreateBucketConfiguration={"LocationConstraint": settings.region},  # type: ignore[typeddict-item]
            )
        else:
            client.create_bucket(Bucket=settings.bucket)
    except ClientError as exc:
        if _code(exc) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            raise


def _build_client(settings: S3Settings) -> S3Client:
    access_key, secret_key = _credentials(settings)
    core = CoreSession()
    core.register_component("data_loader", make_lean_loader())
    # A session of its own: boto3's default session is shared state and not safe between threads.
    return boto3.session.Session(botocore_session=core).client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            retries={"total_max_attempts": settings.max_attempts, "mode": "standard"},
            max_pool_connections=settings.max_connections,
            s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
            # Checksum trailers are refused by several S3-compatible stores; our keys are digests already.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _credentials(settings: S3Settings) -> tuple[str | None, str | None]:
    if settings.credentials_file is not None:
        return _load_credentials(settings.credentials_file)
    if settings.access_key is None or settings.secret_key is None:
        return None, None
    return settings.access_key.get_secret_value(), settings.secret_key.get_secret_value()


def _load_credentials(path: Path) -> tuple[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            values = json.loads(text)
            return str(values["access_key"]), str(values["secret_key"])
        ini = configparser.ConfigParser(interpolation=None)
        ini.read_string(text)
        section = ini["default"]
        return section["aws_access_key_id"], section["aws_secret_access_key"]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, configparser.Error) as exc:
        # The parser's message may quote the file, and the file holds a secret.
        raise ConfigError(
            f"cannot read credentials from {path}: {type(exc).__name__}",
            hint='expected {"access_key": ..., "secret_key": ...} or an AWS credentials file with [default]',
        ) from None


@contextmanager
def _translated(operation: str, key: str) -> Iterator[None]:
    """Turn boto's exceptions into ours; the single place that knows which can pass by themselves."""
    try:
        yield
    except ClientError as exc:
        raise _of_response(exc, operation, key) from exc
    except (NoCredentialsError, PartialCredentialsError) as exc:
        raise AccessDeniedError(f"{operation} {key}: {exc}", hint="give access_key and secret_key") from exc
    except _PASSING_ERRORS as exc:
        raise StorageUnavailableError(f"{operation} {key}: {exc}") from exc
    except BotoCoreError as exc:
        raise StorageError(f"{operation} {key}: {exc}") from exc


def _of_response(exc: ClientError, operation: str, key: str) -> StorageError:
    status, code = _http_status(exc), _code(exc)
    message = f"{operation} {key}: {code} ({status})"
    if code in _SKEW_CODES:
        return ClockSkewError(message, hint="this machine's clock is wrong; it works once the clock is set")
    if code == "NoSuchBucket":
        return StorageError(message, hint="the bucket does not exist")
    if operation == "create" and status in (409, 412):
        return BlobExistsError(message)
    return _kind(status, code)(message)


def _kind(status: int, code: str) -> type[StorageError]:
    if status >= 500 or status in _PASSING_STATUSES or code in _PASSING_CODES:
        return StorageUnavailableError
    if status == 404 or code in _MISSING_CODES:
        return BlobNotFoundError
    if status in (401, 403) or code in _DENIED_CODES:
        return AccessDeniedError
    return BlobRefusedError if status in _REFUSED_STATUSES else StorageError


def _http_status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", "unknown"))
