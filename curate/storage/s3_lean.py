"""A device's blob store over any S3-compatible service: S3 spoken over urllib3, in a fraction of boto3's memory."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_plus

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from curate.errors import (
    AccessDeniedError,
    BlobNotFoundError,
    BlobTooLargeError,
    StorageError,
    StorageUnavailableError,
)
from curate.storage.keys import verify_key, verify_prefix
from curate.storage.ports import STREAM_BYTES, BlobInfo, ServerClock, TaggedBlob
from curate.storage.s3_clock import MachineClock, SkewWatch, learn_time
from curate.storage.s3_connection import find_credentials, locate_bucket, make_pool
from curate.storage.s3_errors import NOT_MODIFIED, NOT_SATISFIABLE, SKEW_STATUSES, error_of_answer
from curate.storage.s3_settings import S3Settings, load_credentials
from curate.storage.s3_xml import read_leaves
from curate.storage.sigv4 import Request, encode_path, encode_query, sign

_MAX_PAUSE_S: Final = 1.0
"""Between two attempts of one call; callers back off by themselves."""
_MAX_REPLY_BYTES: Final = 64 * 1024
"""S3's reply to a write is empty, and a refusal a few hundred bytes."""
_MAX_PAGE_BYTES: Final = 16 * 1024 * 1024
"""A page lists at most 1,000 keys of at most 1,024 bytes, each of which takes three when encoded."""
_SIZE: Final = re.compile("[0-9]{1,18}")

_Page = tuple[list[tuple[str, int]], str]
"""Keys with sizes, and the token of the page that follows; empty when none does."""


@dataclass(frozen=True)
class _Call:
    """One request, and what answers it may get. `key` is what it is about."""

    operation: str
    method: str
    key: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    max_bytes: int | None = _MAX_REPLY_BYTES
    too_large: type[StorageError] = StorageUnavailableError
    expected: int | None = None
    """A status beyond 299 that is no error."""
    is_tagged: bool = True
    """Whether a blob store answers with a tag. A captive portal says 200 to anything it hears."""


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class LeanS3BlobStore:
    """A `BlobStore` in one bucket. Safe to share between threads.

    A retried `create` may find its own first attempt and report the key as taken; with content-addressed
    keys and one writer a key that is what the caller wants to know.
    """

    def __init__(self, settings: S3Settings, clock: ServerClock | None = None) -> None:
        """Requests are signed at the `clock`'s time, and answers teach it; without one, at the machine's own.

        Raises:
            ConfigError: the address, the credentials file or the environment's certificates or proxy are not usable.
        """
        self._clock = clock or MachineClock()
        self._credentials = load_credentials(settings) or find_credentials(os.environ)
        self._region = settings.region
        self._max_attempts = settings.max_attempts
        address = locate_bucket(settings)
        self._host, self._bucket_path = address.netloc or "", address.path or ""
        self._base = f"{address.scheme}://{self._host}"
        self._pool = make_pool(settings, address, self._clock)

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write the whole blob, replacing what was there."""
        self._ask(_Call("put", "PUT", key, self._path(key), headers={"Content-Type": content_type}, body=data))

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write only if the key is free (`If-None-Match: *`; stores that ignore the header overwrite)."""
        headers = {"Content-Type": content_type, "If-None-Match": "*"}
        self._ask(_Call("create", "PUT", key, self._path(key), headers=headers, body=data))

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read the whole blob; BlobTooLargeError when it is larger than `max_bytes`, before reading further."""
        return self._get(key, {}, max_bytes).body

    def get_if_changed(self, key: str, tag: str | None, *, max_bytes: int | None = None) -> TaggedBlob | None:
        """Read the whole blob unless it is still the one with this tag; a store that ignores the header sends it."""
        answer = self._get(key, {} if tag is None else {"If-None-Match": tag}, max_bytes)
        return None if answer.status == NOT_MODIFIED else TaggedBlob(answer.body, answer.headers["ETag"])

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """Yield the blob's bytes from `start` on, in pieces, with one request (`Range`) that is not repeated."""
        headers = {"Range": f"bytes={start}-"}
        call = _Call("stream", "GET", key, self._path(key), headers=headers, expected=NOT_SATISFIABLE)
        with self._open(call) as response:
            if response.status == NOT_SATISFIABLE:
                return
            if start and response.status != 206:
                raise StorageError(f"stream {key}: the store does not know ranges")
            yield from _pieces(response)

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None when nothing lies there."""
        try:
            answer = self._ask(_Call("size", "HEAD", key, self._path(key)))
        except BlobNotFoundError:
            return None
        length = answer.headers.get("Content-Length", "")
        if _SIZE.fullmatch(length) is None:
            raise StorageUnavailableError(f"size {key}: an answer without a length is not a blob store's")
        return int(length)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs under the prefix in key order.

        The whole listing is read first: SeaweedFS sorts folder by folder (`a/x` before `a-b/x`), AWS by bytes.
        """
        verify_prefix(prefix)
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        found, token = self._list_page(prefix, query)
        while token:
            page, following = self._list_page(prefix, {**query, "continuation-token": token})
            if following == token:
                raise StorageError(f"list {prefix}: the store gives the same page again")
            found, token = found + page, following
        yield from (BlobInfo(key=key, size_bytes=size) for key, size in sorted(found))

    def delete(self, key: str) -> None:
        """Remove the blob; removing nothing is fine."""
        self._ask(_Call("delete", "DELETE", key, self._path(key), is_tagged=False))

    def _get(self, key: str, headers: Mapping[str, str], max_bytes: int | None) -> _Answer:
        call = _Call(
            "get",
            "GET",
            key,
            self._path(key),
            headers=headers,
            max_bytes=max_bytes,
            too_large=BlobTooLargeError,
            expected=NOT_MODIFIED if headers else None,
        )
        return self._ask(call)

    def _path(self, key: str) -> str:
        verify_key(key)
        return f"{self._bucket_path}/{encode_path(key)}"

    def _list_page(self, prefix: str, query: Mapping[str, str]) -> _Page:
        path = self._bucket_path or "/"
        call = _Call("list", "GET", prefix, path, query=query, max_bytes=_MAX_PAGE_BYTES, is_tagged=False)
        page = _read_page(self._ask(call).body)
        if page is None:
            raise StorageUnavailableError(f"list {prefix}: an answer without a listing is not a blob store's")
        return page

    def _ask(self, call: _Call) -> _Answer:
        """Return the whole answer; what passes by itself is attempted again, at most so often as the settings say."""
        for _ in range(self._max_attempts - 1):
            try:
                return self._ask_once(call)
            except StorageUnavailableError:
                time.sleep(random.uniform(0.0, _MAX_PAUSE_S))
        return self._ask_once(call)

    def _ask_once(self, call: _Call) -> _Answer:
        with self._open(call) as response:
            size = response.length_remaining
            body = _read(response, call.max_bytes)
            if body is None:
                raise call.too_large(f"{call.key} holds {size or 'some'} bytes, more than {call.max_bytes}")
            return _Answer(response.status, response.headers, body)

    @contextmanager
    def _open(self, call: _Call) -> Iterator[BaseHTTPResponse]:
        """Send a request and hold the answer, its body unread; the single place where errors of urllib3 become ours."""
        try:
            with closing(self._send(call)) as response:
                if response.status >= 300 and response.status != call.expected:
                    raise error_of_answer(call.operation, call.key, response.status, _error_code(response))
                if response.status < 300 and call.is_tagged and not _is_tag(response.headers.get("ETag")):
                    raise StorageUnavailableError(f"{call.key}: an answer without a tag is not a blob store's")
                yield response
        except HTTPError as exc:
            raise StorageUnavailableError(f"{call.operation} {call.key}: {exc}") from exc

    def _send(self, call: _Call) -> BaseHTTPResponse:
        """Send a request; once more when its refusal taught us that our clock was wrong."""
        watch = SkewWatch(self._clock)
        response = self._send_once(call)
        if response.status in SKEW_STATUSES and watch.was_corrected():
            response.close()
            response = self._send_once(call)
        return response

    def _send_once(self, call: _Call) -> BaseHTTPResponse:
        if self._credentials is None:
            raise AccessDeniedError(
                f"{call.operation} {call.key}: there are no credentials",
                hint="give a credentials_file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
            )
        query = encode_query(call.query)
        request = Request(call.method, self._host, call.path, query, call.headers, call.body)
        sent_s = self._clock.monotonic()
        response = self._pool.urlopen(
            call.method,
            f"{self._base}{call.path}{'?' if query else ''}{query}",
            body=call.body or None,
            headers=sign(request, self._credentials, region=self._region, at=self._clock.now()),
            preload_content=False,
            redirect=False,
        )
        learn_time(self._clock, response.headers.get("Date"), sent_s=sent_s)
        return response


def _pieces(response: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the body as it was sent. http.client takes chunks apart: it bounds their lines, urllib3 does not."""
    while piece := _read_piece(response):
        yield piece


def _read_piece(response: BaseHTTPResponse) -> bytes:
    try:
        return response.read(STREAM_BYTES, decode_content=False)
    except ValueError as exc:  # http.client's, about a chunk of negative length
        raise HTTPError(f"not HTTP: {exc}") from exc


def _read(response: BaseHTTPResponse, max_bytes: int | None) -> bytes | None:
    """Return the body; None when it is larger, before reading further."""
    if max_bytes is not None and (response.length_remaining or 0) > max_bytes:
        return None
    pieces: list[bytes] = []
    held = 0
    for piece in _pieces(response):
        pieces.append(piece)
        held += len(piece)
        if max_bytes is not None and held > max_bytes:
            return None
    return b"".join(pieces)


def _is_tag(text: str | None) -> bool:
    return bool(text and text.isascii() and text.isprintable())


def _error_code(response: BaseHTTPResponse) -> str:
    """Return S3's own word for what went wrong, or the status where an answer says none."""
    body = _read(response, _MAX_REPLY_BYTES) or b""
    code = dict(read_leaves(body, "Error") or ()).get("Code", "")
    return code if code.isascii() and code.isalnum() else str(response.status)


def _read_page(document: bytes) -> _Page | None:
    leaves = read_leaves(document, "ListBucketResult")
    named = dict(leaves or ())
    decode = unquote_plus if named.get("EncodingType") == "url" else str
    keys = [decode(text) for name, text in leaves or () if name == "Key"]
    sizes = [int(text) for name, text in leaves or () if name == "Size" and _SIZE.fullmatch(text)]
    if leaves is None or len(keys) != len(sizes):
        return None
    return list(zip(keys, sizes, strict=True)), named.get("NextContinuationToken", "")
