"""The cloud's blob store over any S3-compatible service. The only home of boto3; devices use `s3_lean`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TypedDict

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
from urllib3.exceptions import HTTPError as BrokenLinkError

from curate.errors import (
    AccessDeniedError,
    BlobNotFoundError,
    BlobTooLargeError,
    StorageError,
    StorageUnavailableError,
)
from curate.storage.keys import verify_key, verify_prefix
from curate.storage.ports import STREAM_BYTES, BlobInfo, TaggedBlob
from curate.storage.s3_errors import NOT_MODIFIED, NOT_SATISFIABLE, error_of_answer
from curate.storage.s3_settings import S3Settings, load_credentials

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


class _Condition(TypedDict, total=False):
    IfNoneMatch: str


class S3BlobStore:
    """A `BlobStore` in one bucket. Safe to share between threads.

    A retried `create` may find its own first attempt and report the key as taken; with content-addressed
    keys and one writer a key that is what the caller wants to know.
    """

    def __init__(self, settings: S3Settings) -> None:
        self._bucket = settings.bucket
        self._client = _build_client(settings)

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write the whole blob, replacing what was there."""
        verify_key(key)
        with _translated("put", key):
            _tag_of(self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=content_type), key)

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write only if the key is free (`If-None-Match: *`; stores that ignore the header overwrite)."""
        verify_key(key)
        with _translated("create", key):
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=content_type, IfNoneMatch="*")

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read the whole blob; StorageError when it is larger than `max_bytes`, before reading further."""
        verify_key(key)
        with _translated("get", key):
            response = self._client.get_object(Bucket=self._bucket, Key=key)
            return _read_body(response, key, max_bytes)

    def get_if_changed(self, key: str, tag: str | None, *, max_bytes: int | None = None) -> TaggedBlob | None:
        """Read the whole blob unless it is still the one with this tag; a store that ignores the header sends it."""
        verify_key(key)
        condition: _Condition = {} if tag is None else {"IfNoneMatch": tag}
        with _translated("get", key):
            try:
                response = self._client.get_object(Bucket=self._bucket, Key=key, **condition)
            except ClientError as exc:
                if _http_status(exc) == NOT_MODIFIED:
                    return None
                raise
            return TaggedBlob(_read_body(response, key, max_bytes), _tag_of(response, key))

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """Yield the blob's bytes from `start` on, in pieces, with one request (`Range`)."""
        verify_key(key)
        with _translated("stream", key):
            try:
                response = self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={start}-")
            except ClientError as exc:
                if _http_status(exc) == NOT_SATISFIABLE:
                    return
                raise
            with closing(response["Body"]) as body:
                yield from body.iter_chunks(STREAM_BYTES)

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None when nothing lies there."""
        verify_key(key)
        try:
            with _translated("size", key):
                return self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
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
            self._client.delete_object(Bucket=self._bucket, Key=key)


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
    given = load_credentials(settings)
    # A session of its own: boto3's default session is shared state and not safe between threads.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        aws_access_key_id=given.access_key if given else None,
        aws_secret_access_key=given.secret_key if given else None,
        aws_session_token=given.session_token if given else None,
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


@contextmanager
def _translated(operation: str, key: str) -> Iterator[None]:
    """Turn boto's exceptions into ours; the single place that knows which can pass by themselves."""
    try:
        yield
    except ClientError as exc:
        raise error_of_answer(operation, key, _http_status(exc), _code(exc)) from exc
    except (NoCredentialsError, PartialCredentialsError) as exc:
        raise AccessDeniedError(f"{operation} {key}: {exc}", hint="give access_key and secret_key") from exc
    except _PASSING_ERRORS as exc:
        raise StorageUnavailableError(f"{operation} {key}: {exc}") from exc
    except BotoCoreError as exc:
        raise StorageError(f"{operation} {key}: {exc}") from exc


def _http_status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", "unknown"))
